// Position of an occluder in the image: the geometry shared by all sweeps.
#pragma once

#include "math.h"

namespace occfast {

// Rows top .. bottom - 1 and columns left .. right - 1.
struct Window {
  int64_t top, left, bottom, right;
};

// The occluder about a center, clipped to the image. Height h about row i covers rows i - h / 2 to
// i - h / 2 + h - 1.
OCCFAST_HD Window window_about(int64_t row, int64_t column, int64_t height, int64_t width, int64_t image_height,
                               int64_t image_width) {
  const int64_t top = row - height / 2, left = column - width / 2;
  return Window{larger(top, int64_t{0}), larger(left, int64_t{0}), smaller(top + height, image_height),
                smaller(left + width, image_width)};
}

// A regular grid of occluder centers. The position of a center is its grid row * columns + its grid column.
struct Grid {
  int64_t rows, columns;
  int64_t first_row, first_column;
  int64_t row_step, column_step;
  int64_t height, width; // of the occluder

  OCCFAST_HD int64_t positions() const { return rows * columns; }

  OCCFAST_HD Window window(int64_t position, int64_t image_height, int64_t image_width) const {
    return window_about(first_row + position / columns * row_step, first_column + position % columns * column_step,
                        height, width, image_height, image_width);
  }
};

} // namespace occfast
