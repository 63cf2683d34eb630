// The pixels of a picture whose coefficients are there, or come as they are asked for.

#include <algorithm>
#include <utility>

#include "jpeg_reader.h"

namespace afd {

void JpegReader::set_output(const ReadOptions& options) {
  const bool four_components = cinfo_.num_components == 4;
  cinfo_.out_color_space = four_components ? JCS_CMYK : JCS_RGB;
  cinfo_.dct_method = JDCT_ISLOW;
  cinfo_.do_fancy_upsampling = TRUE;
  cinfo_.scale_num = static_cast<unsigned int>(options.scale);
  cinfo_.scale_denom = DCTSIZE;
  run([this] { jpeg_calc_output_dimensions(&cinfo_); });
}

// Whether the pixels of a region are those of a whole picture. Smoothing, which fills in for bits that no scan has
// brought, looks at blocks further away than a region's margin. And libjpeg-turbo 2.1 makes other pixels where a
// component is both enlarged by its IDCT and upsampled, as the chroma of 4:1:0 is at half the size.
bool JpegReader::may_crop() {
  int least_size = DCTSIZE;
  for (int i = 0; i < cinfo_.num_components; ++i) least_size = std::min(least_size, scaled_size(cinfo_.comp_info[i]));
  for (int i = 0; i < cinfo_.num_components; ++i) {
    jpeg_component_info& component = cinfo_.comp_info[i];
    const int size = scaled_size(component);
    const bool is_upsampled = component.h_samp_factor * size != cinfo_.max_h_samp_factor * least_size ||
                              component.v_samp_factor * size != cinfo_.max_v_samp_factor * least_size;
    if (is_upsampled && size != least_size) return false;
    if (header_.progressive && !has_every_coefficient(static_cast<std::size_t>(i))) return false;
  }
  return true;
}

// Makes libjpeg's next rows those of the region, and returns pixels of the region's size without samples.
//
// Upsampling mixes neighbouring samples of chroma, so that the pixels at a cut are others than in a whole picture. A
// margin of one MCU keeps them out of the region.
Pixels JpegReader::start_region(const Region& region) {
  const auto mcu_width = static_cast<std::uint32_t>(cinfo_.max_h_samp_factor * DCTSIZE);
  const auto mcu_height = static_cast<std::uint32_t>(cinfo_.max_v_samp_factor * DCTSIZE);
  Pixels pixels;
  pixels.x = region.x - std::min(region.x, mcu_width);
  pixels.y = region.y - std::min(region.y, mcu_height);
  pixels.width = std::min(region.x + region.width + mcu_width, cinfo_.output_width) - pixels.x;
  pixels.height = std::min(region.y + region.height, cinfo_.output_height) - pixels.y;
  run([this, &pixels] { jpeg_crop_scanline(&cinfo_, &pixels.x, &pixels.width); });
  if (band_) decoder_->want_only(mcus_under(pixels));
  run([this, &pixels] { jpeg_skip_scanlines(&cinfo_, pixels.y); });
  return pixels;
}

// The MCUs that libjpeg needs for a part of the output, whose left side is an MCU's. One more above and below, because
// upsampling looks at the rows next to it.
McuWindow JpegReader::mcus_under(const Pixels& part) const {
  const std::uint32_t width = static_cast<std::uint32_t>(cinfo_.max_h_samp_factor) * cinfo_.scale_num;
  const std::uint32_t height = static_cast<std::uint32_t>(cinfo_.max_v_samp_factor) * cinfo_.scale_num;
  const std::uint32_t above = part.y / height;
  return {part.x / width, (part.x + part.width + width - 1) / width, above - std::min(above, 1U),
          (part.y + part.height + height - 1) / height + 1};
}

Pixels JpegReader::output_pixels(const ReadOptions& options) {
  run([this] { jpeg_start_output(&cinfo_, cinfo_.input_scan_number); });
  Pixels pixels;
  if (options.region && may_crop()) {
    pixels = start_region(*options.region);
  } else {
    pixels.width = cinfo_.output_width;
    pixels.height = cinfo_.output_height;
  }
  const std::size_t row_bytes = std::size_t{3} * pixels.width;
  const bool turned = options.apply_orientation && header_.orientation > 1;
  const auto final_memory = [&options, &pixels, row_bytes] {
    return options.output.samples != nullptr ? borrowed(options.output.samples)
                                             : allocate_bytes(row_bytes * pixels.height);
  };
  pixels.samples = turned ? allocate_bytes(row_bytes * pixels.height) : final_memory();
  const bool is_cmyk = cinfo_.out_color_space == JCS_CMYK;
  const ByteBuffer cmyk_row = is_cmyk ? allocate_bytes(std::size_t{4} * pixels.width) : ByteBuffer();

  std::uint8_t* row = pixels.samples.get();
  std::uint8_t* cmyk = cmyk_row.get();
  const JDIMENSION first = pixels.y;
  const JDIMENSION end = pixels.y + pixels.height;
  run([this, row, cmyk, row_bytes, first, end] {
    while (cinfo_.output_scanline < end) {
      std::uint8_t* rgb = row + row_bytes * (cinfo_.output_scanline - first);
      JSAMPROW target = cmyk == nullptr ? rgb : cmyk;
      jpeg_read_scanlines(&cinfo_, &target, 1);
      if (cmyk != nullptr) inverted_cmyk_to_rgb(cmyk, rgb, cinfo_.output_width);
    }
    jpeg_finish_output(&cinfo_);
  });
  return turned ? oriented(pixels, header_.orientation, final_memory()) : std::move(pixels);
}

}  // namespace afd
