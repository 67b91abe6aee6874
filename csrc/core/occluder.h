// The draw of one occluder: location, size, kind, noise level and intensities of one sample.
#pragma once

#include "noise.h"
#include "window.h"

namespace occfast {

// One to four kinds of noise, drawn from with equal probability.
struct NoiseKinds {
  int count;
  int kind[kNoiseKinds];
};

// The distribution of occluders, apart from their location. Sizes are in pixels, both ends included.
struct OccluderParams {
  uint64_t seed;
  float probability; // of an occluder on a sample
  int64_t min_height, max_height, min_width, max_width;
  float min_level, max_level, min_intensity, max_intensity;
  NoiseKinds kinds;
  bool gray; // one intensity for all channels
};

// The distribution of occluder centers: cdf [rows * columns], float64, is not decreasing and ends at 1, over the
// centers row_centers [rows] x column_centers [columns].
struct Locations {
  const double* cdf;
  const int64_t* row_centers;
  int64_t rows;
  const int64_t* column_centers;
  int64_t columns;
};

// Draws the occluder of one sample: box [4] (top, left, bottom, right), intensity [channels].
OCCFAST_HD void draw_occluder(int64_t sample, const Locations& at, const OccluderParams& params, int64_t channels,
                              int64_t image_height, int64_t image_width, int32_t* box, uint8_t* kind, float* level,
                              float* intensity) {
  const Key key = key_of(params.seed);
  const Words place = philox(occluder_counter(sample, 0), key);
  const Words shape = philox(occluder_counter(sample, 1), key);
  const bool occluded = uniform24(place.z) < params.probability;
  const int64_t position = inverse_cdf(at.cdf, at.rows * at.columns, uniform53(place.x, place.y));
  const Window window =
      window_about(at.row_centers[position / at.columns], at.column_centers[position % at.columns],
                   integer_between(params.min_height, params.max_height, shape.y),
                   integer_between(params.min_width, params.max_width, shape.z), image_height, image_width);
  box[0] = occluded ? static_cast<int32_t>(window.top) : 0;
  box[1] = occluded ? static_cast<int32_t>(window.left) : 0;
  box[2] = occluded ? static_cast<int32_t>(window.bottom) : 0;
  box[3] = occluded ? static_cast<int32_t>(window.right) : 0;
  *kind = occluded ? static_cast<uint8_t>(params.kinds.kind[integer_between(0, params.kinds.count - 1, place.w)])
                   : kNotOccluded;
  *level = occluded ? between(params.min_level, params.max_level, uniform24(shape.x)) : 0.0f;
  Words colors{};
  for (int64_t c = 0; c < channels; ++c) {
    if (c % 4 == 0 && (c == 0 || !params.gray))
      colors = philox(occluder_counter(sample, 2 + static_cast<uint32_t>(c / 4)), key);
    const int64_t lane = params.gray ? 0 : c % 4;
    const uint32_t word = lane == 0 ? colors.x : lane == 1 ? colors.y : lane == 2 ? colors.z : colors.w;
    intensity[c] = occluded ? between(params.min_intensity, params.max_intensity, uniform24(word)) : 0.0f;
  }
}

} // namespace occfast
