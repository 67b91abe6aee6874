// Definition of the Python module. It is compiled against cpu/ as occfast_cpu, and against cuda/ with the macro
// OCCFAST_CUDA as occfast_cuda. The structs, functions and enumerations of api.h keep their names.
#include <stdexcept>
#include <string>

#include <pybind11/pybind11.h>

#include "api.h"
#include "structs.h"

namespace occfast {

// -- enumerations: the compiler warns about an enumerator without a name --------------------------------

static const char* name_of(Dtype value) {
  switch (value) {
  case Dtype::kUint8:
    return "UINT8";
  case Dtype::kFloat16:
    return "FLOAT16";
  case Dtype::kBFloat16:
    return "BFLOAT16";
  case Dtype::kFloat32:
    return "FLOAT32";
  case Dtype::kFloat64:
    return "FLOAT64";
  }
  return nullptr;
}

static const char* name_of(Score value) {
  switch (value) {
  case Score::kError:
    return "ERROR";
  case Score::kScoreDrop:
    return "SCORE_DROP";
  case Score::kSimilarityDrop:
    return "SIMILARITY_DROP";
  }
  return nullptr;
}

static const char* name_of(NoiseKind value) {
  switch (value) {
  case kSaltAndPepper:
    return "SALT_AND_PEPPER";
  case kSpeckle:
    return "SPECKLE";
  case kGaussian:
    return "GAUSSIAN";
  case kNoNoise:
    return "NONE";
  }
  return nullptr;
}

static const char* name_of(Stream value) {
  switch (value) {
  case kPixels:
    return "PIXELS";
  case kOccluder:
    return "OCCLUDER";
  case kTriplet:
    return "TRIPLET";
  }
  return nullptr;
}

static const char* name_of(Distance value) {
  switch (value) {
  case Distance::kSquaredEuclidean:
    return "SQUARED_EUCLIDEAN";
  case Distance::kEuclidean:
    return "EUCLIDEAN";
  case Distance::kCosine:
    return "COSINE";
  }
  return nullptr;
}

static const char* name_of(Mining value) {
  switch (value) {
  case Mining::kAll:
    return "ALL";
  case Mining::kViolating:
    return "VIOLATING";
  case Mining::kSemihard:
    return "SEMIHARD";
  case Mining::kSemihardRandom:
    return "SEMIHARD_RANDOM";
  case Mining::kHardest:
    return "HARDEST";
  }
  return nullptr;
}

static const char* name_of(Slot value) {
  switch (value) {
  case kPositivePairs:
    return "POSITIVE_PAIRS";
  case kNegativePairs:
    return "NEGATIVE_PAIRS";
  case kMinedPositive:
    return "MINED_POSITIVE";
  case kMinedNegative:
    return "MINED_NEGATIVE";
  case kActivePositive:
    return "ACTIVE_POSITIVE";
  case kActiveNegative:
    return "ACTIVE_NEGATIVE";
  case kCandidates:
    return "CANDIDATES";
  case kViolatingTriplets:
    return "VIOLATING_TRIPLETS";
  case kHardTriplets:
    return "HARD_TRIPLETS";
  case kLoss:
    return "LOSS";
  }
  return nullptr;
}

// Returns {name: value} of an enumeration. Its values are below 64.
template <class E> static py::dict table() {
  py::dict names;
  for (int value = 0; value < 64; ++value)
    if (const char* name = name_of(static_cast<E>(value))) names[name] = value;
  return names;
}

// -- structs that Python passes as sequences: (N, C, H, W), and a list of kinds ----------------------------

template <class FourNumbers> static const char* read_four(PyObject* value, FourNumbers& to) {
  int64_t number[4];
  if (read(value, number)) return "four integers (N, C, H, W)";
  to = {number[0], number[1], number[2], number[3]};
  return nullptr;
}
static const char* read(PyObject* value, Shape& to) { return read_four(value, to); }
static const char* read(PyObject* value, Strides& to) { return read_four(value, to); }

static const char* read(PyObject* value, NoiseKinds& to) {
  NoiseKind kind[kNoiseKinds];
  to.count = static_cast<int>(read_sequence(value, kind, kNoiseKinds));
  for (int k = 0; k < to.count; ++k) to.kind[k] = kind[k];
  return to.count >= 1 ? nullptr : "one to four kinds of noise";
}

namespace {

// -- functions -------------------------------------------------------------------------------------------

void check(int status, const char* name) {
  if (status != 0) throw std::runtime_error(std::string("occfast: ") + name + " failed: " + error_text(status));
}

template <class A> void define(py::module_& m, const char* name, int (*function)(const A&, ExecContext)) {
  m.def(name, [name, function](py::handle args, py::handle context) {
    const A& a = value_of<A>(args);
    const ExecContext resources = value_of<ExecContext>(context);
    py::gil_scoped_release release;
    check(function(a, resources), name);
  });
}

template <class A, class B>
void define(py::module_& m, const char* name, int (*function)(const A&, const B&, ExecContext)) {
  m.def(name, [name, function](py::handle args, py::handle more, py::handle context) {
    const A& a = value_of<A>(args);
    const B& b = value_of<B>(more);
    const ExecContext resources = value_of<ExecContext>(context);
    py::gil_scoped_release release;
    check(function(a, b, resources), name);
  });
}

// Draws and paints noisy occluders in one call from Python.
int draw_and_paint(const DrawOccluders& draw, const PaintOccluders& paint, ExecContext context) {
  if (const int status = draw_occluders(draw, context)) return status;
  return paint_occluders(paint, context);
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

} // namespace
} // namespace occfast

#define FIELD(name) field<decltype(S::name)>(#name, offsetof(S, name))

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace occfast;
  using py::arg;

  py::dict enums;
  enums["Dtype"] = table<Dtype>();
  enums["Score"] = table<Score>();
  enums["NoiseKind"] = table<NoiseKind>();
  enums["Stream"] = table<Stream>();
  enums["Distance"] = table<Distance>();
  enums["Mining"] = table<Mining>();
  enums["Slot"] = table<Slot>();
  m.attr("enums") = enums;
  m.attr("NOT_OCCLUDED") = int{kNotOccluded};
  m.attr("SLOTS") = kSlots;
  m.attr("PIECES") = kPieces;

  {
    using S = ExecContext;
    define_struct<S>(m, "ExecContext", {FIELD(threads), FIELD(stream)});
  }
  m.def("workers", [](py::handle context) { return workers(value_of<ExecContext>(context)); }, arg("context"));

  {
    using S = Grid;
    define_struct<S>(m, "Grid",
                     {FIELD(rows), FIELD(columns), FIELD(first_row), FIELD(first_column), FIELD(row_step),
                      FIELD(column_step), FIELD(height), FIELD(width)});
  }
  {
    using S = OccludePositions;
    define_struct<S>(m, "OccludePositions",
                     {FIELD(images), FIELD(out), FIELD(fill), FIELD(positions), FIELD(count), FIELD(itemsize),
                      FIELD(shape), FIELD(strides), FIELD(fill_strides), FIELD(grid)});
  }
  define(m, "occlude_positions", &occlude_positions);

  {
    using S = SweepScore;
    define_struct<S>(m, "SweepScore",
                     {FIELD(outputs), FIELD(dtype), FIELD(positions), FIELD(count), FIELD(classes), FIELD(images),
                      FIELD(per_image), FIELD(kind), FIELD(labels), FIELD(references), FIELD(baseline),
                      FIELD(scores), FIELD(bad)});
  }
  define(m, "sweep_score", &sweep_score);

  {
    using S = SweepAccumulate;
    define_struct<S>(m, "SweepAccumulate",
                     {FIELD(scores), FIELD(images), FIELD(per_image), FIELD(sum), FIELD(squares)});
  }
  define(m, "sweep_accumulate", &sweep_accumulate);

  {
    using S = GatherWindows;
    define_struct<S>(m, "GatherWindows",
                     {FIELD(maps), FIELD(patches), FIELD(out), FIELD(images), FIELD(origins), FIELD(patch_origins),
                      FIELD(count), FIELD(shape), FIELD(height), FIELD(width), FIELD(patch_height),
                      FIELD(patch_width), FIELD(padding), FIELD(itemsize)});
  }
  define(m, "gather_windows", &gather_windows);

  {
    using S = GatherPieces;
    define_struct<S>(m, "GatherPieces",
                     {FIELD(maps),         FIELD(full),          FIELD(row_strips),   FIELD(column_strips),
                      FIELD(corners),      FIELD(out),           FIELD(images),       FIELD(rows),
                      FIELD(columns),      FIELD(row_cuts),      FIELD(column_cuts),  FIELD(origins),
                      FIELD(entries),      FIELD(count),         FIELD(shape),        FIELD(height),
                      FIELD(width),        FIELD(strip_rows),    FIELD(strip_height), FIELD(strip_columns),
                      FIELD(strip_width),  FIELD(corner_height), FIELD(corner_width), FIELD(first_edge),
                      FIELD(column_edges), FIELD(padding),       FIELD(itemsize)});
  }
  define(m, "gather_pieces", &gather_pieces);

  {
    using S = Convolution;
    define_struct<S>(m, "Convolution",
                     {FIELD(weights), FIELD(bias), FIELD(dtype), FIELD(channels), FIELD(kernel), FIELD(stride),
                      FIELD(dilation), FIELD(relu), FIELD(tf32)});
  }
  m.def("convolution_block", [](int dtype) { return convolution_block(static_cast<Dtype>(dtype)); }, arg("dtype"));
  define(m, "convolve_windows", &convolve_windows);
  define(m, "convolve_pieces", &convolve_pieces);

  {
    using S = Locations;
    define_struct<S>(m, "Locations",
                     {FIELD(cdf), FIELD(row_centers), FIELD(rows), FIELD(column_centers), FIELD(columns)});
  }
  {
    using S = OccluderParams;
    define_struct<S>(m, "OccluderParams",
                     {FIELD(seed), FIELD(probability), FIELD(min_height), FIELD(max_height), FIELD(min_width),
                      FIELD(max_width), FIELD(min_level), FIELD(max_level), FIELD(min_intensity),
                      FIELD(max_intensity), FIELD(kinds), FIELD(gray)});
  }
  {
    using S = Occluders;
    define_struct<S>(m, "Occluders", {FIELD(boxes), FIELD(kind), FIELD(level), FIELD(intensity)});
  }
  {
    using S = DrawOccluders;
    define_struct<S>(m, "DrawOccluders",
                     {FIELD(sample_ids), FIELD(n), FIELD(channels), FIELD(image_height), FIELD(image_width),
                      FIELD(locations), FIELD(params), FIELD(occluders)});
  }
  {
    using S = PaintOccluders;
    define_struct<S>(m, "PaintOccluders",
                     {FIELD(images), FIELD(out), FIELD(dtype), FIELD(shape), FIELD(strides), FIELD(sample_ids),
                      FIELD(occluders), FIELD(seed), FIELD(low), FIELD(high), FIELD(outside)});
  }
  define(m, "draw_occluders", &draw_occluders);
  define(m, "paint_occluders", &paint_occluders);
  define(m, "draw_and_paint", &draw_and_paint);

  {
    using S = CenterRows;
    define_struct<S>(m, "CenterRows",
                     {FIELD(rows), FIELD(dtype), FIELD(n), FIELD(dim), FIELD(given), FIELD(unit), FIELD(mean),
                      FIELD(centered), FIELD(squares), FIELD(lengths)});
  }
  define(m, "center_rows", &center_rows);

  {
    using S = Pairs;
    define_struct<S>(m, "Pairs",
                     {FIELD(rows), FIELD(columns), FIELD(dim), FIELD(first), FIELD(own), FIELD(members),
                      FIELD(start), FIELD(stop)});
  }
  {
    using S = TripletParams;
    define_struct<S>(m, "TripletParams",
                     {FIELD(distance), FIELD(mining), FIELD(hinge), FIELD(statistics), FIELD(margin), FIELD(beta),
                      FIELD(seed), FIELD(step)});
  }
  {
    using S = MineTriplets;
    define_struct<S>(m, "MineTriplets",
                     {FIELD(values), FIELD(dtype), FIELD(a), FIELD(b), FIELD(a_squares), FIELD(b_squares),
                      FIELD(pairs), FIELD(params), FIELD(top), FIELD(bins), FIELD(counts), FIELD(records),
                      FIELD(nearest), FIELD(histogram)});
  }
  {
    using S = SumTriplets;
    define_struct<S>(m, "SumTriplets", {FIELD(records), FIELD(rows), FIELD(params), FIELD(pieces), FIELD(totals)});
  }
  {
    using S = TripletWeights;
    define_struct<S>(m, "TripletWeights",
                     {FIELD(values), FIELD(dtype), FIELD(counts), FIELD(totals), FIELD(a_squares),
                      FIELD(b_squares), FIELD(pairs), FIELD(params), FIELD(row_sums), FIELD(column_sums)});
  }
  define(m, "mine_triplets", &mine_triplets);
  define(m, "sum_triplets", &sum_triplets);
  define(m, "triplet_weights", &triplet_weights);

  m.def(
      "philox_words",
      [](uintptr_t counters, uintptr_t keys, int64_t n, uintptr_t words, py::handle context) {
        check(philox_words(at<uint32_t>(counters), at<uint32_t>(keys), n, at<uint32_t>(words),
                           value_of<ExecContext>(context)),
              "philox_words");
      },
      py::kw_only(), arg("counters"), arg("keys"), arg("n"), arg("words"), arg("context"));
  m.def(
      "normals",
      [](uintptr_t words, int64_t n, uintptr_t values, py::handle context) {
        check(normals(at<uint32_t>(words), n, at<float>(values), value_of<ExecContext>(context)), "normals");
      },
      py::kw_only(), arg("words"), arg("n"), arg("values"), arg("context"));

#if !defined(OCCFAST_CUDA)
  {
    using S = MatrixProduct;
    define_struct<S>(m, "MatrixProduct",
                     {FIELD(a), FIELD(a_row), FIELD(a_column), FIELD(b), FIELD(b_row), FIELD(b_column),
                      FIELD(dtype), FIELD(m), FIELD(n), FIELD(k), FIELD(symmetric), FIELD(out)});
  }
  define(m, "multiply", &multiply);
#endif
}
