// The draw of one occluder: place, size, kind, level and intensities of one sample.
#pragma once

#include "../api.h"
#include "noise.h"
#include "window.h"

namespace occfast {

OCCFAST_HD void draw_occluder(int64_t sample, const double* cdf, const int64_t* row_centers, int64_t rows,
                              const int64_t* column_centers, int64_t columns, int64_t channels,
                              int64_t image_height, int64_t image_width, const OccluderLaw& law, int32_t* box,
                              uint8_t* kind, float* level, float* intensity) {
  const Key key = key_of(law.seed);
  const Words place = philox(occluder_counter(sample, 0), key);
  const Words shape = philox(occluder_counter(sample, 1), key);
  const bool occluded = uniform24(place.z) < law.probability;
  const int64_t position = inverse_cdf(cdf, rows * columns, uniform53(place.x, place.y));
  const Window window =
      window_about(row_centers[position / columns], column_centers[position % columns],
                   integer_between(law.min_height, law.max_height, shape.y),
                   integer_between(law.min_width, law.max_width, shape.z), image_height, image_width);
  box[0] = occluded ? static_cast<int32_t>(window.top) : 0;
  box[1] = occluded ? static_cast<int32_t>(window.left) : 0;
  box[2] = occluded ? static_cast<int32_t>(window.bottom) : 0;
  box[3] = occluded ? static_cast<int32_t>(window.right) : 0;
  *kind = occluded ? static_cast<uint8_t>(law.kinds[integer_between(0, law.n_kinds - 1, place.w)]) : 255;
  *level = occluded ? between(law.min_level, law.max_level, uniform24(shape.x)) : 0.0f;
  Words colors{};
  for (int64_t c = 0; c < channels; ++c) {
    if (c % 4 == 0 && (c == 0 || !law.gray))
      colors = philox(occluder_counter(sample, 2 + static_cast<uint32_t>(c / 4)), key);
    const int64_t lane = law.gray ? 0 : c % 4;
    const uint32_t word = lane == 0 ? colors.x : lane == 1 ? colors.y : lane == 2 ? colors.z : colors.w;
    intensity[c] = occluded ? between(law.min_intensity, law.max_intensity, uniform24(word)) : 0.0f;
  }
}

} // namespace occfast
