#pragma once

namespace afd {

// What an EXIF orientation, 1 to 8, does to the stored picture: which edges of the upright picture the stored first row
// and first column are (EXIF 2.32, 4.6.4.A).
struct Orientation {
  explicit Orientation(int exif)
      : mirrors_x(exif == 2 || exif == 3 || exif == 7 || exif == 8),
        mirrors_y(exif == 3 || exif == 4 || exif == 6 || exif == 7),
        swaps_axes(exif >= 5) {}

  bool mirrors_x;  // of the stored picture
  bool mirrors_y;
  bool swaps_axes;  // after that
};

}  // namespace afd
