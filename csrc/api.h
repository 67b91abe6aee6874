// The native interface of occfast.
//
// cpu/ and cuda/ each define every function below, except the one at the end, which only cpu/ defines. Most take
// one struct with their arguments, and bindings.cpp makes the same structs available in Python, where every field
// is given by name. Tensors are passed as addresses with sizes and strides in elements.  occfast/native/ops/
// checks them first, so no header of PyTorch is needed and a build takes seconds. A function returns 0, or a
// cudaError_t that error_text explains.
#pragma once

#include "core/mining.h"
#include "core/occluder.h"
#include "core/window.h"

namespace occfast {

// The resources of a call: a number of threads on a CPU, a stream on a GPU.
struct ExecContext {
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

const char* error_text(int status);

// The number of threads that a call with this context runs on.  1 on a GPU.
int workers(ExecContext context);

// -- dense sweep --------------------------------------------------------------------------------------

// Occluded copies: out[m] = images[n] with window p of the grid replaced by fill, where positions[m] =
// n * grid.positions() + p.  out [count, C, H, W] has the layout of images (contiguous or channels_last).  fill
// has stride 0 along dimensions that are broadcast. Elements of itemsize bytes are moved, never interpreted.
struct OccludePositions {
  const void* images;
  void* out;
  const void* fill;
  const int64_t* positions; // [count]
  int64_t count;
  int itemsize;
  Shape shape; // of images
  Strides strides, fill_strides;
  Grid grid;
};

int occlude_positions(const OccludePositions& args, ExecContext context);

// kError           1 if the lowest index of the largest output differs from labels[n], else 0
// kScoreDrop       baseline[n] - outputs[m][labels[n]]
// kSimilarityDrop  baseline[n] - cosine(outputs[m], references[n])
enum class Score : int { kError, kScoreDrop, kSimilarityDrop };

// Scores of occluded copies.  outputs [count, classes] is contiguous, of kFloat32 or kFloat64.  positions is as
// above, with per_image positions per image. Each element of scores [images, per_image] that has a position is
// written.  *bad is set to 1 if any output is NaN or infinite.
struct SweepScore {
  const void* outputs;
  Dtype dtype;
  const int64_t* positions; // [count]
  int64_t count, classes, images, per_image;
  Score kind;
  const int64_t* labels;    // [images]
  const double* references; // [images, classes]
  const double* baseline;   // [images]
  double* scores;
  int32_t* bad;
};

int sweep_score(const SweepScore& args, ExecContext context);

// Running sums of scores [images, per_image] over images, in the order of the images:
// sum[p] += score, squares[p] += score squared.
struct SweepAccumulate {
  const double* scores;
  int64_t images, per_image;
  double* sum;     // [per_image]
  double* squares; // [per_image]
};

int sweep_accumulate(const SweepAccumulate& args, ExecContext context);

// -- incremental sweep --------------------------------------------------------------------------------

// Windows of occluded maps.  out[m] [height, width, C] is the window of maps[images[m]] whose first pixel is
// origins[m] (row, column), after patches[m] was laid over the map with its first pixel at patch_origins[m].
// Both may extend beyond the map: the window reads padding there, and the patch is clipped.  maps [N, H, W, C],
// patches [count, patch_height, patch_width, C] (or null) and out are dense. Elements of itemsize bytes (2, 4 or
// 8) are moved, never interpreted.  padding holds the bits of one element.
struct GatherWindows {
  const void* maps;
  const void* patches;
  void* out;
  const int64_t* images;        // [count]
  const int64_t* origins;       // [count, 2]
  const int64_t* patch_origins; // [count, 2], or null
  int64_t count;
  Shape shape; // of maps, in the order N, C, H, W
  int64_t height, width, patch_height, patch_width;
  uint64_t padding;
  int itemsize;
};

int gather_windows(const GatherWindows& args, ExecContext context);

// The parts of a map along one axis that an occluder changes. Rows [low, high) may differ from the clean map.
// Those before full_low depend on the first edge of the occluder alone, those from full_high on its last edge
// alone, and the rest equal the map of a fully occluded image.  strip and corner hold the first row of the strip
// and of the corner that contain the rows of the first edge, and of the last.
struct Cuts {
  int64_t low, full_low, full_high, high;
  int64_t strip[2], corner[2];
};

// Windows as in GatherWindows, of maps that are assembled from pieces: the clean map, the map of a fully occluded
// image, strips that all positions of a grid row (or column) share, and up to four corners per position. Window e
// belongs to position m = e % count, which lies on image images[m] in grid row rows[m] and grid column columns[m].
// row_strips [2, strip_rows, strip_height, W, C] and column_strips [2, strip_columns, H, strip_width, C] hold the
// first and the last edge.  corners [row edges, column edges, count, corner_height, corner_width, C] holds the
// edges from first_edge (row, column) on, column_edges of them per row edge. Empty pieces may be null.
struct GatherPieces {
  const void* maps;
  const void* full;
  const void* row_strips;
  const void* column_strips;
  const void* corners;
  void* out;
  const int64_t* images;   // [count]
  const int64_t* rows;     // [count]
  const int64_t* columns;  // [count]
  const Cuts* row_cuts;    // [strip_rows]
  const Cuts* column_cuts; // [strip_columns]
  const int64_t* origins;  // [entries, 2]
  int64_t entries, count;
  Shape shape; // of maps and full
  int64_t height, width;
  int64_t strip_rows, strip_height, strip_columns, strip_width, corner_height, corner_width;
  int64_t first_edge[2], column_edges;
  uint64_t padding;
  int itemsize;
};

int gather_pieces(const GatherPieces& args, ExecContext context);

// A convolution without padding of every window as it is gathered: no window is written.  out is then [entries, h,
// w, channels].  weights [blocks, kernel rows, kernel columns, C, block] and bias [blocks, block] are filled with
// zeros up to whole blocks of convolution_block(dtype) output channels, which is 0 where there is no convolution
// of dtype. kFloat32 and kFloat64: each output starts at its bias and adds the products one by one, tap by tap and
// channel by channel, so that a GPU and a CPU that multiplies and adds with one rounding return the same bits.  On
// a GPU also kFloat16 and kBFloat16, with sums in float, and with tf32 set the factors of kFloat32 are rounded to
// TF32; the order of these sums is the device's, and weights and bias are aligned to 16 bytes.
struct Convolution {
  const void* weights;
  const void* bias;
  Dtype dtype;
  int64_t channels; // of the output
  int64_t kernel[2], stride[2], dilation[2];
  bool relu, tf32;
};

int64_t convolution_block(Dtype dtype);
int convolve_windows(const GatherWindows& args, const Convolution& conv, ExecContext context);
int convolve_pieces(const GatherPieces& args, const Convolution& conv, ExecContext context);

// -- noisy occluders ----------------------------------------------------------------------------------

// Drawn occluders of n samples.
struct Occluders {
  int32_t* boxes;   // [n, 4]: top, left, bottom, right; all 0 for a sample without an occluder
  uint8_t* kind;    // [n]: a NoiseKind, or kNotOccluded
  float* level;     // [n]
  float* intensity; // [n, channels]
};

// Draws one occluder for each of n samples.
struct DrawOccluders {
  const int64_t* sample_ids; // [n]
  int64_t n, channels, image_height, image_width;
  Locations locations;
  OccluderParams params;
  Occluders occluders; // written
};

int draw_occluders(const DrawOccluders& args, ExecContext context);

// Paints drawn occluders.  out is either images itself, or another tensor of the same layout, which then receives
// the whole batch. Intensities 0 and 1 are stored as low and high (for kUint8 as 0 and 255).  *outside, unless
// null, is set to 1 if a floating-point image has NaN or a value outside [low, high].
struct PaintOccluders {
  const void* images;
  void* out;
  Dtype dtype;
  Shape shape;
  Strides strides;           // of images and out
  const int64_t* sample_ids; // [n]
  Occluders occluders;       // read
  uint64_t seed;
  float low, high;
  int32_t* outside;
};

int paint_occluders(const PaintOccluders& args, ExecContext context);

// -- batch triplet loss -------------------------------------------------------------------------------

// Subtracts a value near the mean from rows [n, dim], of kFloat32 or kFloat64.  given: mean [dim] is input; else
// it is computed (near_mean) and written.  lengths [n] receives the squared length of each row before, squares
// [n], of the type of rows, that after.  unit: rows are unit vectors or zero, and a zero row gets a square of -1.
struct CenterRows {
  const void* rows;
  Dtype dtype;
  int64_t n, dim;
  bool given, unit;
  double* mean;
  void* centered;
  void* squares;
  double* lengths;
};

int center_rows(const CenterRows& args, ExecContext context);

// First half of the loss.  values [rows, columns] holds the products of the centered embeddings a [rows, dim] and
// b [columns, dim] before the call and their distances after it.  counts [rows, columns] receives the number of
// triplets w that a pair is selected in, as -w for a positive pair and w for a negative one. With
// params.statistics, nearest [2, rows] receives the distance of each anchor's nearest positive and negative
// (infinite if there is none), and the numbers of positive and negative pairs in bins over [0, *top] are added to
// histogram [2, bins] (own: each pair once). The anchors may be some rows of a batch.
struct MineTriplets {
  void* values;
  Dtype dtype;
  const void* a;
  const void* b;
  const void* a_squares;
  const void* b_squares;
  Pairs pairs;
  TripletParams params;
  const double* top;
  int bins;
  int32_t* counts;
  double* records; // [rows, kSlots], one of each anchor
  void* nearest;
  int64_t* histogram;
};

int mine_triplets(const MineTriplets& args, ExecContext context);

// The record of the batch, with the loss, from those of all anchors: totals [kSlots].
struct SumTriplets {
  const double* records; // [rows, kSlots]
  int64_t rows;
  TripletParams params;
  double* pieces; // [kPieces, kSlots], work space
  double* totals;
};

int sum_triplets(const SumTriplets& args, ExecContext context);

// Second half: replaces the distances in values [rows, columns] by the matrix of the gradient.  own: a symmetric
// matrix whose product with the embeddings is the gradient. Otherwise a matrix S, with row_sums and column_sums:
// the gradients are row_sums a + S b and column_sums b + S' a. Of pairs, the sizes and own are read.
struct TripletWeights {
  void* values;
  Dtype dtype;
  const int32_t* counts;
  const double* totals;
  const void* a_squares;
  const void* b_squares;
  Pairs pairs;
  TripletParams params;
  void* row_sums;
  void* column_sums;
};

int triplet_weights(const TripletWeights& args, ExecContext context);

// -- for tests ----------------------------------------------------------------------------------------

// words [n, 4] of Philox from counters [n, 4] and keys [n, 2].
int philox_words(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words, ExecContext context);

// values [n]: the normals that words [n] stand for.
int normals(const uint32_t* words, int64_t n, float* values, ExecContext context);

// -- CPU only: on a GPU the libraries of PyTorch do this ----------------------------------------------

// out [m, n], contiguous, = A [m, k] B [k, n], each with any strides.  symmetric: B is A transposed. Every sum
// has one order, whatever the number of threads.  kFloat32 and kFloat64.
struct MatrixProduct {
  const void* a;
  int64_t a_row, a_column; // strides
  const void* b;
  int64_t b_row, b_column;
  Dtype dtype;
  int64_t m, n, k;
  bool symmetric;
  void* out;
};

int multiply(const MatrixProduct& args, ExecContext context);

} // namespace occfast
