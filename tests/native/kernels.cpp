// Runs every CPU kernel on fixed inputs and writes the results, without Python: for processors that are emulated,
// and to compare instruction sets to the bit.  tests/matrix/kernels.py builds it and reads what it writes: for
// each result a line "name dtype count" and its bytes.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "api.h"
#include "core/philox.h"

using namespace occfast;

namespace {

template <class T> const char* dtype_name();
template <> const char* dtype_name<uint8_t>() { return "uint8"; }
template <> const char* dtype_name<uint16_t>() { return "uint16"; }
template <> const char* dtype_name<uint32_t>() { return "uint32"; }
template <> const char* dtype_name<uint64_t>() { return "uint64"; }
template <> const char* dtype_name<int32_t>() { return "int32"; }
template <> const char* dtype_name<int64_t>() { return "int64"; }
template <> const char* dtype_name<float>() { return "float32"; }
template <> const char* dtype_name<double>() { return "float64"; }

template <class T> void write(const std::string& name, const std::vector<T>& values) {
  std::printf("%s %s %zu\n", name.c_str(), dtype_name<T>(), values.size());
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

// Words of Philox, so that the inputs are the same everywhere.
struct Random {
  explicit Random(uint32_t seed) : key{seed, 0x0CCFA57u} {}
  uint32_t word() {
    const uint32_t at = count++;
    if (at % 4 == 0) block = philox(Words{at / 4, 77, 0, 0}, key);
    return at % 4 == 0 ? block.x : at % 4 == 1 ? block.y : at % 4 == 2 ? block.z : block.w;
  }
  float unit() { return static_cast<float>(word() >> 8) * 5.9604644775390625e-08f; } // in [0, 1)
  int64_t below(int64_t end) {
    return static_cast<int64_t>((uint64_t{word()} * static_cast<uint64_t>(end)) >> 32);
  }
  template <class T> std::vector<T> numbers(int64_t count) { // in [-1, 1)
    std::vector<T> out(count);
    for (T& value : out) value = static_cast<T>(2 * unit() - 1);
    return out;
  }
  template <class T> std::vector<T> words(int64_t count) {
    std::vector<T> out(count);
    for (T& value : out) value = static_cast<T>(uint64_t{word()} << 32 | word());
    return out;
  }
  Key key;
  Words block{};
  uint32_t count = 0;
};

// Results are filled with this byte first, so that whatever a kernel leaves out shows.
template <class T> std::vector<T> unwritten(int64_t count) {
  std::vector<T> out(count);
  if (count) std::memset(static_cast<void*>(out.data()), 0xFF, count * sizeof(T));
  return out;
}

ExecContext context{1, nullptr};

template <class T> constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
template <class T> std::string of(const char* name) { return std::string(name) + "/" + dtype_name<T>(); }

// -- occluders -----------------------------------------------------------------------------------------

void noise() {
  Random random(1);
  const auto counters = random.words<uint32_t>(4000), keys = random.words<uint32_t>(2000);
  auto words = unwritten<uint32_t>(4000);
  philox_words(counters.data(), keys.data(), 1000, words.data(), context);
  write("philox", words);
  std::vector<uint32_t> every(1 << 18); // the high bits are the tail probability, the low one is the sign
  for (size_t k = 0; k < every.size(); ++k) every[k] = static_cast<uint32_t>(k << 14 | (k & 1));
  auto values = unwritten<float>(every.size());
  normals(every.data(), static_cast<int64_t>(every.size()), values.data(), context);
  write("normals", values);
}

struct Drawn {
  std::vector<int64_t> ids;
  std::vector<int32_t> boxes;
  std::vector<uint8_t> kind;
  std::vector<float> level, intensity;
};

constexpr int64_t kHeight = 37, kWidth = 29;

Drawn draw(int64_t n, int64_t channels, bool gray) {
  Random random(2);
  Drawn out{random.words<int64_t>(n), unwritten<int32_t>(4 * n), unwritten<uint8_t>(n), unwritten<float>(n),
            unwritten<float>(n * channels)};
  for (int64_t& id : out.ids) id &= (int64_t{1} << 62) - 1;
  std::vector<double> cdf(kHeight * kWidth);
  double sum = 0;
  for (double& value : cdf) value = sum += random.unit();
  for (double& value : cdf) value /= sum;
  cdf.back() = 1;
  std::vector<int64_t> rows(kHeight), columns(kWidth);
  for (int64_t k = 0; k < kHeight; ++k) rows[k] = k;
  for (int64_t k = 0; k < kWidth; ++k) columns[k] = k;
  DrawOccluders args{};
  args.sample_ids = out.ids.data();
  args.n = n, args.channels = channels, args.image_height = kHeight, args.image_width = kWidth;
  args.locations = Locations{cdf.data(), rows.data(), kHeight, columns.data(), kWidth};
  args.params =
      OccluderParams{7, 0.9f, 3, 30, 1, kWidth, 0.05f, 0.4f, 0.1f, 0.9f, NoiseKinds{4, {0, 1, 2, 3}}, gray};
  args.occluders = Occluders{out.boxes.data(), out.kind.data(), out.level.data(), out.intensity.data()};
  draw_occluders(args, context);
  return out;
}

template <class T> void paint(const char* name, Dtype dtype, int64_t channels, bool last) {
  const int64_t n = 40;
  Drawn drawn = draw(n, channels, channels == 1);
  std::vector<T> images(n * channels * kHeight * kWidth, T{1}), out = unwritten<T>(images.size());
  PaintOccluders args{};
  args.images = images.data(), args.out = out.data(), args.dtype = dtype;
  args.shape = Shape{n, channels, kHeight, kWidth};
  const int64_t size = channels * kHeight * kWidth;
  args.strides = last ? Strides{size, 1, kWidth * channels, channels} : Strides{size, kHeight * kWidth, kWidth, 1};
  args.sample_ids = drawn.ids.data();
  args.occluders = Occluders{drawn.boxes.data(), drawn.kind.data(), drawn.level.data(), drawn.intensity.data()};
  args.seed = 7, args.low = -1.5f, args.high = 2.25f;
  paint_occluders(args, context);
  write(std::string("paint/") + name + "/" + std::to_string(channels) + (last ? "/last" : ""), out);
}

void occluders() {
  for (bool gray : {false, true}) {
    const Drawn drawn = draw(500, 3, gray);
    const std::string name = gray ? "draw/gray/" : "draw/";
    write(name + "boxes", drawn.boxes);
    write(name + "kind", drawn.kind);
    write(name + "level", drawn.level);
    write(name + "intensity", drawn.intensity);
  }
  for (const int64_t channels : {1, 3})
    for (const bool last : {false, true}) {
      if (last && channels == 1) continue;
      paint<uint8_t>("uint8", Dtype::kUint8, channels, last);
      paint<uint16_t>("float16", Dtype::kFloat16, channels, last);
      paint<uint16_t>("bfloat16", Dtype::kBFloat16, channels, last);
      paint<float>("float32", Dtype::kFloat32, channels, last);
    }
}

// -- sweeps --------------------------------------------------------------------------------------------

template <class T> void dense_sweep() {
  Random random(3);
  const int64_t n = 3, c = 3, h = 17, w = 13, size = c * h * w;
  const auto images = random.words<T>(n * size), fill = random.words<T>(size);
  const Grid grid{6, 5, 0, 1, 3, 3, 5, 4};
  std::vector<int64_t> positions(64);
  for (int64_t& position : positions) position = random.below(n * grid.positions());
  for (const bool last : {false, true}) {
    const Strides layout = last ? Strides{size, 1, w * c, c} : Strides{size, h * w, w, 1};
    auto out = unwritten<T>(static_cast<int64_t>(positions.size()) * size);
    OccludePositions args{};
    args.images = images.data(), args.out = out.data(), args.fill = fill.data(), args.positions = positions.data();
    args.count = static_cast<int64_t>(positions.size()), args.itemsize = sizeof(T);
    args.shape = Shape{n, c, h, w}, args.strides = layout, args.grid = grid;
    args.fill_strides = Strides{0, layout.c, layout.h, layout.w};
    occlude_positions(args, context);
    write(of<T>("occlude_positions") + (last ? "/last" : ""), out);
  }
}

template <class T> void scores() {
  Random random(4);
  const int64_t images = 3, per_image = 20, classes = 37, count = images * per_image;
  const auto outputs = random.numbers<T>(count * classes);
  const auto references = random.numbers<double>(images * classes), baseline = random.numbers<double>(images);
  std::vector<int64_t> positions(count), labels(images);
  for (int64_t k = 0; k < count; ++k) positions[k] = count - 1 - k;
  for (int64_t& label : labels) label = random.below(classes);
  std::vector<double> sum(per_image), squares(per_image);
  for (const Score kind : {Score::kError, Score::kScoreDrop, Score::kSimilarityDrop}) {
    auto found = unwritten<double>(count);
    int32_t bad = 0;
    sweep_score(SweepScore{outputs.data(), kDtype<T>, positions.data(), count, classes, images, per_image, kind,
                           labels.data(), references.data(), baseline.data(), found.data(), &bad},
                context);
    sweep_accumulate(SweepAccumulate{found.data(), images, per_image, sum.data(), squares.data()}, context);
    found.push_back(bad);
    write(of<T>("score") + "/" + std::to_string(static_cast<int>(kind)), found);
  }
  write(of<T>("accumulate/sum"), sum);
  write(of<T>("accumulate/squares"), squares);
}

template <class T> struct Packed {
  std::vector<T> weights, bias;
};

template <class T> Packed<T> pack(Random& random, int64_t channels, int64_t products) {
  const int64_t block = convolution_block(kDtype<T>), blocks = (channels + block - 1) / block;
  const auto weights = random.numbers<T>(channels * products), bias = random.numbers<T>(channels);
  Packed<T> out{std::vector<T>(blocks * block * products), std::vector<T>(blocks * block)};
  for (int64_t o = 0; o < channels; ++o) {
    out.bias[o] = bias[o];
    for (int64_t k = 0; k < products; ++k)
      out.weights[(o / block * products + k) * block + o % block] = weights[o * products + k];
  }
  return out;
}

// T: the type of a convolution; U: an integer of its size.
template <class T, class U> void windows(bool convolve) {
  Random random(5);
  const int64_t n = 2, c = 5, h = 15, w = 18, count = 23, height = 8, width = 9, ph = 6, pw = 7, channels = 19;
  const auto maps = random.numbers<T>(n * c * h * w), patches = random.numbers<T>(count * c * ph * pw);
  std::vector<int64_t> images(count), origins(2 * count), patch_origins(2 * count);
  for (int64_t& image : images) image = random.below(n);
  for (int64_t& origin : origins) origin = random.below(20) - 5;
  for (int64_t& origin : patch_origins) origin = random.below(20) - 5;
  const T padding = static_cast<T>(-0.25);
  U bits;
  std::memcpy(&bits, &padding, sizeof bits);
  GatherWindows args{};
  args.maps = maps.data(), args.patches = patches.data(), args.images = images.data();
  args.origins = origins.data(), args.patch_origins = patch_origins.data(), args.count = count;
  args.shape = Shape{n, c, h, w}, args.height = height, args.width = width;
  args.patch_height = ph, args.patch_width = pw, args.padding = bits, args.itemsize = sizeof(T);
  if (!convolve) {
    auto out = unwritten<T>(count * height * width * c);
    args.out = out.data();
    gather_windows(args, context);
    write(of<T>("gather_windows"), out);
    return;
  }
  for (const int64_t stride : {1, 2}) {
    const auto packed = pack<T>(random, channels, 9 * c);
    auto out = unwritten<T>(count * ((height - 3) / stride + 1) * ((width - 3) / stride + 1) * channels);
    args.out = out.data();
    convolve_windows(args,
                     Convolution{packed.weights.data(),
                                 packed.bias.data(),
                                 kDtype<T>,
                                 channels,
                                 {3, 3},
                                 {stride, stride},
                                 {1, 1},
                                 stride == 2,
                                 false},
                     context);
    write(of<T>("convolve_windows") + "/" + std::to_string(stride), out);
  }
}

// Pieces as large as the map, so that every row and column of a piece lies where it does in the map.
template <class T, class U> void pieces(bool convolve) {
  Random random(6);
  const int64_t n = 2, c = 4, h = 12, w = 11, count = 9, entries = 2 * count, rows = 5, columns = 6;
  const auto maps = random.numbers<T>(n * c * h * w), full = random.numbers<T>(n * c * h * w);
  const auto row_strips = random.numbers<T>(2 * rows * h * w * c),
             column_strips = random.numbers<T>(2 * columns * h * w * c);
  const auto corners = random.numbers<T>(4 * count * h * w * c);
  const auto cuts = [&](int64_t many, int64_t size) {
    std::vector<Cuts> out(many);
    for (Cuts& cut : out) {
      cut.low = random.below(size / 2);
      cut.full_low = cut.low + random.below(3);
      cut.full_high = cut.full_low + random.below(3);
      cut.high = smaller(size, cut.full_high + random.below(3));
    }
    return out;
  };
  const auto row_cuts = cuts(rows, h), column_cuts = cuts(columns, w);
  std::vector<int64_t> images(count), row(count), column(count), origins(2 * entries);
  for (int64_t& image : images) image = random.below(n);
  for (int64_t& r : row) r = random.below(rows);
  for (int64_t& s : column) s = random.below(columns);
  for (int64_t& origin : origins) origin = random.below(14) - 4;
  GatherPieces args{};
  args.maps = maps.data(), args.full = full.data(), args.row_strips = row_strips.data();
  args.column_strips = column_strips.data(), args.corners = corners.data();
  args.images = images.data(), args.rows = row.data(), args.columns = column.data();
  args.row_cuts = row_cuts.data(), args.column_cuts = column_cuts.data(), args.origins = origins.data();
  args.entries = entries, args.count = count, args.shape = Shape{n, c, h, w}, args.height = 7, args.width = 6;
  args.strip_rows = rows, args.strip_height = h, args.strip_columns = columns, args.strip_width = w;
  args.corner_height = h, args.corner_width = w, args.column_edges = 2, args.itemsize = sizeof(T);
  if (!convolve) {
    auto out = unwritten<T>(entries * 7 * 6 * c);
    args.out = out.data();
    gather_pieces(args, context);
    write(of<T>("gather_pieces"), out);
    return;
  }
  const auto packed = pack<T>(random, 33, 6 * c);
  auto out = unwritten<T>(entries * 6 * 4 * 33);
  args.out = out.data();
  convolve_pieces(
      args,
      Convolution{packed.weights.data(), packed.bias.data(), kDtype<T>, 33, {2, 3}, {1, 1}, {1, 1}, false, false},
      context);
  write(of<T>("convolve_pieces"), out);
}

// -- triplet loss --------------------------------------------------------------------------------------

template <class T> void products() {
  Random random(8);
  for (const int64_t k : {1, 70, 500}) {
    const int64_t m = 45, n = 38;
    const auto a = random.numbers<T>(m * k), b = random.numbers<T>(n * k);
    for (const bool symmetric : {false, true}) {
      const int64_t across = symmetric ? m : n;
      auto out = unwritten<T>(m * across);
      multiply(MatrixProduct{a.data(), k, 1, symmetric ? a.data() : b.data(), 1, k, kDtype<T>, m, across, k,
                             symmetric, out.data()},
               context);
      write(of<T>("multiply") + "/" + std::to_string(k) + (symmetric ? "/symmetric" : ""), out);
    }
  }
}

template <class T> void triplets() {
  Random random(9);
  const int64_t rows = 70, dim = 40, per_class = 7;
  auto embeddings = random.numbers<T>(rows * dim);
  for (int64_t k = 0; k < dim; ++k) embeddings[dim + k] = embeddings[k]; // a pair at distance 0
  std::vector<int64_t> members(rows), start(rows), stop(rows);
  for (int64_t i = 0; i < rows; ++i) {
    members[i] = i;
    start[i] = i / per_class * per_class;
    stop[i] = start[i] + per_class;
  }
  for (const Distance distance : {Distance::kSquaredEuclidean, Distance::kEuclidean, Distance::kCosine}) {
    auto mean = unwritten<double>(dim), lengths = unwritten<double>(rows);
    auto centered = unwritten<T>(rows * dim), squares = unwritten<T>(rows);
    center_rows(CenterRows{embeddings.data(), kDtype<T>, rows, dim, false, distance == Distance::kCosine,
                           mean.data(), centered.data(), squares.data(), lengths.data()},
                context);
    const std::string name = of<T>("triplets") + "/" + std::to_string(static_cast<int>(distance)) + "/";
    write(name + "mean", mean);
    write(name + "centered", centered);
    write(name + "squares", squares);
    write(name + "lengths", lengths);
    std::vector<T> dots(rows * rows);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) {
        T sum = 0;
        for (int64_t k = 0; k < dim; ++k) sum += centered[i * dim + k] * centered[j * dim + k];
        dots[i * rows + j] = sum;
      }
    for (int mining = 0; mining < 5; ++mining) {
      auto values = dots;
      auto counts = unwritten<int32_t>(rows * rows);
      auto records = unwritten<double>(rows * kSlots), pieces = unwritten<double>(kPieces * kSlots);
      auto totals = unwritten<double>(kSlots);
      auto nearest = unwritten<T>(2 * rows);
      std::vector<int64_t> histogram(2 * 16);
      const double top = 60;
      const Pairs pairs{rows, rows, dim, 0, true, members.data(), start.data(), stop.data()};
      const TripletParams params{distance, static_cast<Mining>(mining), mining % 2 == 0, true, 0.3, 0.5, 11, 3};
      mine_triplets(MineTriplets{values.data(), kDtype<T>, centered.data(), centered.data(), squares.data(),
                                 squares.data(), pairs, params, &top, 16, counts.data(), records.data(),
                                 nearest.data(), histogram.data()},
                    context);
      sum_triplets(SumTriplets{records.data(), rows, params, pieces.data(), totals.data()}, context);
      const std::string mined = name + std::to_string(mining) + "/";
      write(mined + "distances", values);
      write(mined + "counts", counts);
      write(mined + "totals", totals);
      write(mined + "nearest", nearest);
      write(mined + "histogram", histogram);
      triplet_weights(TripletWeights{values.data(), kDtype<T>, counts.data(), totals.data(), squares.data(),
                                     squares.data(), pairs, params, nullptr, nullptr},
                      context);
      write(mined + "weights", values);
    }
  }
}

} // namespace

int main(int argc, char** argv) {
  if (argc > 1) context.threads = std::atoi(argv[1]);
  noise();
  occluders();
  dense_sweep<uint8_t>();
  dense_sweep<uint16_t>();
  dense_sweep<uint32_t>();
  dense_sweep<uint64_t>();
  scores<float>();
  scores<double>();
  for (const bool convolve : {false, true}) {
    windows<float, uint32_t>(convolve);
    windows<double, uint64_t>(convolve);
    pieces<float, uint32_t>(convolve);
    pieces<double, uint64_t>(convolve);
  }
  products<float>();
  products<double>();
  triplets<float>();
  triplets<double>();
  return 0;
}
