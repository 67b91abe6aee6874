// The native surface of occfast on one page.
//
// Every function exists twice: cpu/ and cuda/ each define all of them, and bindings.cpp is compiled
// once against either.  Tensors arrive as raw addresses with sizes and strides in elements, already
// checked in occfast/native/ops/, so no header of PyTorch is needed and a build takes seconds.
// The result is 0, or the cudaError_t that error_text explains.
#pragma once

#include "core/mining.h"
#include "core/portable.h"
#include "core/window.h"

namespace occfast {

// Where to run: that many threads on a CPU, that stream on a GPU.
struct Where {
  int threads;
  void* stream;
};

struct Shape {
  int64_t n, c, h, w;
};

struct Strides {
  int64_t n, c, h, w;
};

enum class Dtype : int { kUint8, kFloat16, kBFloat16, kFloat32, kFloat64 };

enum class Score : int { kError, kScoreDrop, kSimilarityDrop };

const char* error_text(int status);

// Processes that share the work: what a call with this Where runs on (CPU: threads, CUDA: 1).
int workers(Where where);

// The dense sweep.  out[m] = images[n] with window p of the grid replaced by fill, where
// positions[m] = n * grid.positions() + p.  out [count, C, H, W] has the layout of images
// (contiguous or channels_last); fill has strides of 0 where it is broadcast.  Elements of
// `itemsize` bytes are moved, never interpreted.
int occlude_positions(const void* images, void* out, const void* fill, const int64_t* positions, int64_t count,
                      int itemsize, Shape shape, Strides image, Strides fill_strides, Grid grid, Where where);

// Sweep scoring.  outputs [count, classes] float32 or float64, contiguous; positions as above with
// `per_image` positions an image; scores [images, per_image] float64 receives one number each:
//   kError            1 if the lowest index of the largest output differs from labels[n], else 0
//   kScoreDrop        baseline[n] - outputs[m][labels[n]]
//   kSimilarityDrop   baseline[n] - cosine(outputs[m], references[n]), references [images, classes]
// *bad is set to 1 if any output is NaN or infinite.
int sweep_score(const void* outputs, Dtype dtype, const int64_t* positions, int64_t count, int64_t classes,
                int64_t images, int64_t per_image, Score kind, const int64_t* labels, const double* references,
                const double* baseline, double* scores, int32_t* bad, Where where);

// Running sums of scores [images, per_image] over its images, in the order of the images:
// sum[p] += score, squares[p] += score squared.
int sweep_accumulate(const double* scores, int64_t images, int64_t per_image, double* sum, double* squares,
                     Where where);

// The incremental sweep.  out[m] [height, width, C] is the window of maps[images[m]] whose first pixel
// is origins[m] (row, column), with patches[m] laid over the map first, its first pixel at
// patch_origins[m]; both may reach outside the map, where the window gets `padding` and the patch is
// cut.  maps [N, H, W, C], patches [count, patch_height, patch_width, C] (or null), out: all dense.
// Elements of 2, 4 or 8 bytes are moved, never interpreted; padding holds the bits of one.
struct GatherWindows {
  const void* maps;
  const void* patches;
  void* out;
  const int64_t* images;
  const int64_t* origins;       // [count, 2]
  const int64_t* patch_origins; // [count, 2]
  int64_t count;
  Shape shape; // of maps
  int64_t height, width, patch_height, patch_width;
  uint64_t padding;
};

int gather_windows(const GatherWindows& g, int itemsize, Where where);

// Where an occluder cuts a map along one axis: rows [low, high) may differ from the clean map; those
// before full_low depend on the occluder's first edge alone, those from full_high on its last edge
// alone, the rest are as if everything were occluded.  strip and corner: the first row of the piece
// that holds the rows of the first edge, and of the last.
struct Cuts {
  int64_t low, full_low, full_high, high;
  int64_t strip[2], corner[2];
};

// Early sharing.  As gather_windows, but the occluded map is put together from pieces: the clean map,
// the map of a fully occluded image, strips that all positions of a grid row (column) share, and four
// corners of each position.  Window e of entries belongs to position m = e % count, which lies on
// image images[m] in grid row rows[m] and grid column columns[m].  row_strips [2, strip_rows,
// strip_height, W, C] and column_strips [2, strip_columns, H, strip_width, C]: first and last edge;
// corners [row edges, column edges, count, corner_height, corner_width, C], where only the edges from
// first_edge (rows, columns) on may be there.  Pieces that are empty may be null.
struct GatherPieces {
  const void* maps;
  const void* full;
  const void* row_strips;
  const void* column_strips;
  const void* corners;
  void* out;
  const int64_t* images;
  const int64_t* rows;
  const int64_t* columns;
  const Cuts* row_cuts;
  const Cuts* column_cuts;
  const int64_t* origins; // [entries, 2]
  int64_t entries, count;
  Shape shape; // of maps and full
  int64_t height, width;
  int64_t strip_rows, strip_height, strip_columns, strip_width, corner_height, corner_width;
  int64_t first_edge[2], column_edges;
  uint64_t padding;
};

int gather_pieces(const GatherPieces& g, int itemsize, Where where);

// A convolution without padding of every window, in one pass; out is [entries, h, w, channels] then.
// weights [blocks, kernel rows, kernel columns, C, block] and bias [blocks, block] are padded with zeros
// to whole blocks of convolution_block(dtype) output channels.  kFloat32 and kFloat64.  A GPU has no
// block (0): there the library's convolution runs on what gather_* gives.
struct Convolution {
  const void* weights;
  const void* bias;
  int64_t channels; // of the output
  int64_t kernel[2], stride[2], dilation[2];
  bool relu;
};

int64_t convolution_block(Dtype dtype);
int convolve_windows(const GatherWindows& g, const Convolution& conv, Dtype dtype, Where where);
int convolve_pieces(const GatherPieces& g, const Convolution& conv, Dtype dtype, Where where);

// What to draw an occluder from.  kinds holds n_kinds NoiseKind values, four at most.
struct OccluderLaw {
  uint64_t seed;
  float probability; // of occluding a sample at all
  int64_t min_height, max_height, min_width, max_width;
  float min_level, max_level, min_intensity, max_intensity;
  int n_kinds;
  int kinds[4];
  bool gray; // one intensity for all channels
};

// One occluder a sample.  cdf float64 [rows * columns], not decreasing, ends at 1, over the centers
// row_centers [rows] x column_centers [columns].  boxes int32 [n, 4] (top, left, bottom, right; all
// 0 where the sample is left alone), kind uint8 [n] (NoiseKind, or 255), level float32 [n],
// intensity float32 [n, channels].
int draw_occluders(const int64_t* sample_ids, int64_t n, const double* cdf, const int64_t* row_centers,
                   int64_t rows, const int64_t* column_centers, int64_t columns, int64_t channels,
                   int64_t image_height, int64_t image_width, OccluderLaw law, int32_t* boxes, uint8_t* kind,
                   float* level, float* intensity, Where where);

// Paints drawn occluders.  out may be images itself (in place) or a tensor of its layout, which then
// receives the whole batch.  low and high: the values that intensities 0 and 1 stand for (uint8: 0
// and 255).  *outside, if given, is set to 1 where a floating-point image has NaN or a value outside
// of them.
int paint_occluders(const void* images, void* out, Dtype dtype, Shape shape, Strides strides,
                    const int64_t* sample_ids, const int32_t* boxes, const uint8_t* kind, const float* level,
                    const float* intensity, uint64_t seed, float low, float high, int32_t* outside, Where where);

// rows [n, dim] minus their mean (near_mean of it, computed here, or as given), with the squared length of each
// row before (lengths, float64) and after (squares, in the rows' type).  unit: rows are unit vectors or zero, and
// a zero row gets a square of -1.
int center_rows(const void* rows, Dtype dtype, int64_t n, int64_t dim, bool given, bool unit, double* mean,
                void* centered, void* squares, double* lengths, Where where);

// out [m, n] = A [m, k] B [k, n], each with any strides; symmetric: B is A transposed.  Every sum has one
// order.  CPU only: on a GPU the library of PyTorch does it, and this is an error.
int multiply(const void* a, int64_t a_row, int64_t a_column, const void* b, int64_t b_row, int64_t b_column,
             Dtype dtype, int64_t m, int64_t n, int64_t k, bool symmetric, void* out, Where where);

// Batch triplet loss, first half.  values [rows, columns]: products of the centered embeddings a [rows, dim]
// and b [columns, dim] before, distances after; counts: of triplets a pair is selected in, -w for a positive
// pair and w for a negative one.  records [rows, kSlots] and pieces [kPieces, kSlots] are work space, totals
// [kSlots] the batch's sums.  With law.statistics: nearest [2, rows], the distance of each anchor's nearest
// positive and negative (infinite where there is none), and histogram [2, bins] (zeros before), positive and
// negative pairs (own: each once) in bins over [0, *top].
int mine_triplets(void* values, Dtype dtype, const void* a, const void* b, const void* a_squares,
                  const void* b_squares, Pairs pairs, TripletLaw law, const double* top, int bins, int32_t* counts,
                  double* records, double* pieces, double* totals, void* nearest, int64_t* histogram, Where where);

// Second half: distances become the matrix of the gradient.  own: the symmetric matrix whose product with
// the embeddings is the gradient.  Otherwise S [rows, columns] with row_sums and column_sums, for the
// gradients row_sums a + S b and column_sums b + S' a.
int triplet_weights(void* values, Dtype dtype, const int32_t* counts, const double* totals, const void* a_squares,
                    const void* b_squares, Pairs pairs, TripletLaw law, void* row_sums, void* column_sums,
                    Where where);

// For tests: n x 4 words of Philox from counters [n, 4] and keys [n, 2], and normals from words.
int philox_words(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words, Where where);
int normals(const uint32_t* words, int64_t n, float* values, Where where);

} // namespace occfast
