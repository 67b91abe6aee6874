// The only module definition.  It is compiled once against cpu/ (occfast_cpu) and once against
// cuda/ (occfast_cuda); both modules have the same functions.
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "api.h"

namespace py = pybind11;

namespace occfast {
namespace {

using Address = uintptr_t;
using Four = std::array<int64_t, 4>;
using Eight = std::array<int64_t, 8>;

template <class T> T* at(Address address) { return reinterpret_cast<T*>(address); }

Shape shape_of(const Four& v) { return Shape{v[0], v[1], v[2], v[3]}; }
Strides strides_of(const Four& v) { return Strides{v[0], v[1], v[2], v[3]}; }
Grid grid_of(const Eight& v) { return Grid{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}; }
Where where_of(int threads, Address stream) { return Where{threads, at<void>(stream)}; }

Convolution convolution_of(const std::vector<int64_t>& v) {
  if (v.size() != 10) throw std::invalid_argument("conv: ten numbers are expected");
  return Convolution{at<void>(static_cast<Address>(v[0])),
                     at<void>(static_cast<Address>(v[1])),
                     v[2],
                     {v[3], v[4]},
                     {v[5], v[6]},
                     {v[7], v[8]},
                     v[9] != 0};
}

// own, distance, selection, hinge, statistics
using Choices = std::array<int, 5>;

Pairs pairs_of(const std::array<int64_t, 3>& sizes, const Choices& choice, Address members, Address start,
               Address stop) {
  return Pairs{sizes[0],           sizes[1],         sizes[2], choice[0] != 0, at<int64_t>(members),
               at<int64_t>(start), at<int64_t>(stop)};
}
TripletLaw triplet_law_of(const Choices& choice, double margin, double beta, uint64_t seed, uint32_t step) {
  return TripletLaw{static_cast<Distance>(choice[1]),
                    static_cast<Select>(choice[2]),
                    choice[3] != 0,
                    choice[4] != 0,
                    margin,
                    beta,
                    seed,
                    step};
}

OccluderLaw occluder_law_of(uint64_t seed, float probability, const Four& sizes,
                            const std::array<float, 4>& ranges, const std::vector<int>& kinds, bool gray) {
  if (kinds.empty() || kinds.size() > 4) throw std::invalid_argument("kinds: one to four are expected");
  OccluderLaw law{seed,
                  probability,
                  sizes[0],
                  sizes[1],
                  sizes[2],
                  sizes[3],
                  ranges[0],
                  ranges[1],
                  ranges[2],
                  ranges[3],
                  static_cast<int>(kinds.size()),
                  {},
                  gray};
  for (size_t k = 0; k < kinds.size(); ++k) law.kinds[k] = kinds[k];
  return law;
}

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("occfast: ") + what + " failed: " + error_text(status));
}

} // namespace
} // namespace occfast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace occfast;

  m.def("workers", [](int threads, Address stream) { return workers(where_of(threads, stream)); });

  m.def("occlude_positions",
        [](Address images, Address out, Address fill, Address positions, int64_t count, int itemsize, Four shape,
           Four strides, Four fill_strides, Eight grid, int threads, Address stream) {
          py::gil_scoped_release release;
          check(occlude_positions(at<void>(images), at<void>(out), at<void>(fill), at<int64_t>(positions), count,
                                  itemsize, shape_of(shape), strides_of(strides), strides_of(fill_strides),
                                  grid_of(grid), where_of(threads, stream)),
                "occlude_positions");
        });

  m.def("sweep_score", [](Address outputs, int dtype, Address positions, int64_t count, int64_t classes,
                          int64_t images, int64_t per_image, int kind, Address labels, Address references,
                          Address baseline, Address scores, Address bad, int threads, Address stream) {
    py::gil_scoped_release release;
    check(sweep_score(at<void>(outputs), static_cast<Dtype>(dtype), at<int64_t>(positions), count, classes, images,
                      per_image, static_cast<Score>(kind), at<int64_t>(labels), at<double>(references),
                      at<double>(baseline), at<double>(scores), at<int32_t>(bad), where_of(threads, stream)),
          "sweep_score");
  });

  m.def("sweep_accumulate", [](Address scores, int64_t images, int64_t per_image, Address sum, Address squares,
                               int threads, Address stream) {
    py::gil_scoped_release release;
    check(sweep_accumulate(at<double>(scores), images, per_image, at<double>(sum), at<double>(squares),
                           where_of(threads, stream)),
          "sweep_accumulate");
  });

  m.def("convolution_block", [](int dtype) { return convolution_block(static_cast<Dtype>(dtype)); });

  // An empty `conv` gathers; otherwise it holds weights, bias, channels, kernel, stride, dilation, relu.
  m.def("gather_windows",
        [](Address maps, Address patches, Address out, Address images, Address origins, Address patch_origins,
           int64_t count, Four shape, Four sizes, uint64_t padding, int itemsize, int dtype,
           const std::vector<int64_t>& conv, int threads, Address stream) {
          const GatherWindows g{at<void>(maps),
                                at<void>(patches),
                                at<void>(out),
                                at<int64_t>(images),
                                at<int64_t>(origins),
                                at<int64_t>(patch_origins),
                                count,
                                shape_of(shape),
                                sizes[0],
                                sizes[1],
                                sizes[2],
                                sizes[3],
                                padding};
          const Where where = where_of(threads, stream);
          py::gil_scoped_release release;
          check(conv.empty() ? gather_windows(g, itemsize, where)
                             : convolve_windows(g, convolution_of(conv), static_cast<Dtype>(dtype), where),
                "gather_windows");
        });

  m.def("gather_pieces",
        [](Address maps, Address full, Address row_strips, Address column_strips, Address corners, Address out,
           Address images, Address rows, Address columns, Address row_cuts, Address column_cuts, Address origins,
           int64_t entries, int64_t count, Four shape, Eight sizes, std::array<int64_t, 3> edges, uint64_t padding,
           int itemsize, int dtype, const std::vector<int64_t>& conv, int threads, Address stream) {
          const GatherPieces g{at<void>(maps),
                               at<void>(full),
                               at<void>(row_strips),
                               at<void>(column_strips),
                               at<void>(corners),
                               at<void>(out),
                               at<int64_t>(images),
                               at<int64_t>(rows),
                               at<int64_t>(columns),
                               at<Cuts>(row_cuts),
                               at<Cuts>(column_cuts),
                               at<int64_t>(origins),
                               entries,
                               count,
                               shape_of(shape),
                               sizes[0],
                               sizes[1],
                               sizes[2],
                               sizes[3],
                               sizes[4],
                               sizes[5],
                               sizes[6],
                               sizes[7],
                               {edges[0], edges[1]},
                               edges[2],
                               padding};
          const Where where = where_of(threads, stream);
          py::gil_scoped_release release;
          check(conv.empty() ? gather_pieces(g, itemsize, where)
                             : convolve_pieces(g, convolution_of(conv), static_cast<Dtype>(dtype), where),
                "gather_pieces");
        });

  m.def("draw_occluders", [](Address sample_ids, int64_t n, Address cdf, Address row_centers, int64_t rows,
                             Address column_centers, int64_t columns, int64_t channels, int64_t height,
                             int64_t width, uint64_t seed, float probability, Four sizes,
                             std::array<float, 4> ranges, const std::vector<int>& kinds, bool gray, Address boxes,
                             Address kind, Address level, Address intensity, int threads, Address stream) {
    const OccluderLaw law = occluder_law_of(seed, probability, sizes, ranges, kinds, gray);
    py::gil_scoped_release release;
    check(draw_occluders(at<int64_t>(sample_ids), n, at<double>(cdf), at<int64_t>(row_centers), rows,
                         at<int64_t>(column_centers), columns, channels, height, width, law, at<int32_t>(boxes),
                         at<uint8_t>(kind), at<float>(level), at<float>(intensity), where_of(threads, stream)),
          "draw_occluders");
  });

  m.def("draw_and_paint",
        [](Address images, Address out, int dtype, Four shape, Four strides, Address sample_ids, Address cdf,
           Address row_centers, int64_t rows, Address column_centers, int64_t columns, uint64_t seed,
           float probability, Four sizes, std::array<float, 4> ranges, const std::vector<int>& kinds, bool gray,
           std::array<Address, 4> drawn, float low, float high, Address outside, int threads, Address stream) {
          const OccluderLaw law = occluder_law_of(seed, probability, sizes, ranges, kinds, gray);
          const Where where = where_of(threads, stream);
          auto* const boxes = at<int32_t>(drawn[0]);
          auto* const kind = at<uint8_t>(drawn[1]);
          auto *const level = at<float>(drawn[2]), *const intensity = at<float>(drawn[3]);
          py::gil_scoped_release release;
          check(draw_occluders(at<int64_t>(sample_ids), shape[0], at<double>(cdf), at<int64_t>(row_centers), rows,
                               at<int64_t>(column_centers), columns, shape[1], shape[2], shape[3], law, boxes,
                               kind, level, intensity, where),
                "draw_occluders");
          check(paint_occluders(at<void>(images), at<void>(out), static_cast<Dtype>(dtype), shape_of(shape),
                                strides_of(strides), at<int64_t>(sample_ids), boxes, kind, level, intensity, seed,
                                low, high, at<int32_t>(outside), where),
                "paint_occluders");
        });

  m.def("paint_occluders", [](Address images, Address out, int dtype, Four shape, Four strides, Address sample_ids,
                              Address boxes, Address kind, Address level, Address intensity, uint64_t seed,
                              float low, float high, Address outside, int threads, Address stream) {
    py::gil_scoped_release release;
    check(paint_occluders(at<void>(images), at<void>(out), static_cast<Dtype>(dtype), shape_of(shape),
                          strides_of(strides), at<int64_t>(sample_ids), at<int32_t>(boxes), at<uint8_t>(kind),
                          at<float>(level), at<float>(intensity), seed, low, high, at<int32_t>(outside),
                          where_of(threads, stream)),
          "paint_occluders");
  });

  m.def("center_rows", [](Address rows, int dtype, int64_t n, int64_t dim, bool given, bool unit, Address mean,
                          Address centered, Address squares, Address lengths, int threads, Address stream) {
    py::gil_scoped_release release;
    check(center_rows(at<void>(rows), static_cast<Dtype>(dtype), n, dim, given, unit, at<double>(mean),
                      at<void>(centered), at<void>(squares), at<double>(lengths), where_of(threads, stream)),
          "center_rows");
  });

  m.def("multiply", [](Address a, int64_t a_row, int64_t a_column, Address b, int64_t b_row, int64_t b_column,
                       int dtype, int64_t rows, int64_t columns, int64_t depth, bool symmetric, Address out,
                       int threads, Address stream) {
    py::gil_scoped_release release;
    check(multiply(at<void>(a), a_row, a_column, at<void>(b), b_row, b_column, static_cast<Dtype>(dtype), rows,
                   columns, depth, symmetric, at<void>(out), where_of(threads, stream)),
          "multiply");
  });

  m.def("mine_triplets", [](Address values, int dtype, Address a, Address b, Address a_squares, Address b_squares,
                            std::array<int64_t, 3> sizes, Choices choice, Address members, Address start,
                            Address stop, double margin, double beta, uint64_t seed, uint32_t step, Address top,
                            int bins, Address counts, Address records, Address pieces, Address totals,
                            Address nearest, Address histogram, int threads, Address stream) {
    py::gil_scoped_release release;
    check(mine_triplets(at<void>(values), static_cast<Dtype>(dtype), at<void>(a), at<void>(b), at<void>(a_squares),
                        at<void>(b_squares), pairs_of(sizes, choice, members, start, stop),
                        triplet_law_of(choice, margin, beta, seed, step), at<double>(top), bins,
                        at<int32_t>(counts), at<double>(records), at<double>(pieces), at<double>(totals),
                        at<void>(nearest), at<int64_t>(histogram), where_of(threads, stream)),
          "mine_triplets");
  });

  m.def("triplet_weights", [](Address values, int dtype, Address counts, Address totals, Address a_squares,
                              Address b_squares, std::array<int64_t, 3> sizes, Choices choice, double margin,
                              double beta, Address row_sums, Address column_sums, int threads, Address stream) {
    py::gil_scoped_release release;
    check(triplet_weights(at<void>(values), static_cast<Dtype>(dtype), at<int32_t>(counts), at<double>(totals),
                          at<void>(a_squares), at<void>(b_squares), pairs_of(sizes, choice, 0, 0, 0),
                          triplet_law_of(choice, margin, beta, 0, 0), at<void>(row_sums), at<void>(column_sums),
                          where_of(threads, stream)),
          "triplet_weights");
  });

  m.attr("triplet_sizes") = std::array<int, 2>{kSlots, kPieces};

  m.def("philox_words", [](Address counters, Address keys, int64_t n, Address words, int threads, Address stream) {
    check(philox_words(at<uint32_t>(counters), at<uint32_t>(keys), n, at<uint32_t>(words),
                       where_of(threads, stream)),
          "philox_words");
  });

  m.def("normals", [](Address words, int64_t n, Address values, int threads, Address stream) {
    check(normals(at<uint32_t>(words), n, at<float>(values), where_of(threads, stream)), "normals");
  });
}
