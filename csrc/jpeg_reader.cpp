#include "jpeg_reader.h"

#include <algorithm>
#include <utility>

#include "exif.h"

namespace afd {
namespace {

const char* color_space_name(J_COLOR_SPACE space) {
  switch (space) {
    case JCS_GRAYSCALE:
      return "grayscale";
    case JCS_YCbCr:
      return "ycbcr";
    case JCS_RGB:
      return "rgb";
    case JCS_CMYK:
      return "cmyk";
    case JCS_YCCK:
      return "ycck";
    default:
      return nullptr;
  }
}

std::uint32_t round_up(std::uint32_t value, std::uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::optional<QuantTable> copy_table(const JQUANT_TBL* table) {
  if (table == nullptr) return std::nullopt;
  QuantTable copy;
  std::copy_n(table->quantval, DCTSIZE2, copy.begin());
  return copy;
}

}  // namespace

JpegReader::JpegReader(const std::uint8_t* data, std::size_t size, const Limits& limits, bool tolerant)
    : data_(data), size_(size), limits_(limits), tolerant_(tolerant), errors_(tolerant) {
  check_input();
  cinfo_.err = errors_.base();
  session_.base.progress_monitor = before_input;
  session_.reader = this;
  const bool header_read = errors_.guarded([this] {
    jpeg_create_decompress(&cinfo_);
    cinfo_.progress = &session_.base;
    jpeg_mem_src(&cinfo_, data_, static_cast<unsigned long>(size_));
    jpeg_set_marker_processor(&cinfo_, JPEG_APP0 + 1, read_app1);
    jpeg_read_header(&cinfo_, TRUE);
  });
  try {
    if (!header_read) throw errors_.failure();
    header_ = describe();
  } catch (...) {
    jpeg_destroy_decompress(&cinfo_);  // a constructor that throws has no destructor
    throw;
  }
}

JpegReader::~JpegReader() { jpeg_destroy_decompress(&cinfo_); }

// Looks at the segment where it lies: jpeg_save_markers would copy every one, and a file can hold millions. The first
// EXIF segment that states an orientation counts. Skipping more than there is makes the source report the end.
boolean JpegReader::read_app1(j_decompress_ptr cinfo) {
  JpegReader& self = reader_of(reinterpret_cast<j_common_ptr>(cinfo));
  jpeg_source_mgr& source = *cinfo->src;
  std::size_t length = 2;
  if (source.bytes_in_buffer >= 2) {
    const JOCTET* segment = source.next_input_byte;
    length = std::max<std::size_t>(length, std::size_t{segment[0]} << 8 | segment[1]);
    const bool whole = length <= source.bytes_in_buffer;
    if (whole && self.orientation_ == 0) self.orientation_ = exif_orientation(segment + 2, length - 2);
  }
  source.skip_input_data(cinfo, static_cast<long>(length));
  return TRUE;
}

bool Header::is_laid_out_as(const Header& other) const {
  const auto alike = [](const Component& one, const Component& another) {
    return one.h == another.h && one.v == another.v && one.width_in_blocks == another.width_in_blocks &&
           one.height_in_blocks == another.height_in_blocks;
  };
  return width == other.width && height == other.height && orientation == other.orientation &&
         std::equal(components.begin(), components.end(), other.components.begin(), other.components.end(), alike);
}

Header JpegReader::describe() {
  if (cinfo_.data_precision != BITS_IN_JSAMPLE) {
    throw JpegFailure(ErrorKind::kUnsupported, format("%d-bit samples", cinfo_.data_precision));
  }
  // libjpeg-turbo 3 reads lossless files, whose blocks are single samples.
  if (scaled_size(cinfo_.comp_info[0]) != DCTSIZE) throw JpegFailure(ErrorKind::kUnsupported, "lossless coding");
  Header header{};
  header.color_space = color_space_name(cinfo_.jpeg_color_space);
  if (header.color_space == nullptr) {
    throw JpegFailure(ErrorKind::kUnsupported, format("no colour space has %d components", cinfo_.num_components));
  }
  header.width = cinfo_.image_width;
  header.height = cinfo_.image_height;
  header.precision = cinfo_.data_precision;
  header.progressive = cinfo_.progressive_mode != FALSE;
  header.arithmetic = cinfo_.arith_code != FALSE;
  header.restart_interval = cinfo_.restart_interval;
  header.orientation = orientation_ == 0 ? 1 : orientation_;
  if (cinfo_.saw_Adobe_marker) header.adobe_transform = cinfo_.Adobe_transform;
  for (int i = 0; i < cinfo_.num_components; ++i) {
    const jpeg_component_info& info = cinfo_.comp_info[i];
    const JQUANT_TBL* table = info.quant_tbl_no < NUM_QUANT_TBLS ? cinfo_.quant_tbl_ptrs[info.quant_tbl_no] : nullptr;
    header.components.push_back({info.component_id, info.h_samp_factor, info.v_samp_factor, info.width_in_blocks,
                                 info.height_in_blocks, copy_table(table)});
  }
  return header;
}

// What goes wrong behind a scan whose rows are yet to be decoded is not the first fault, if those are faulty too.
Picture JpegReader::read(ReadOptions options) {
  try {
    return read_once(options);
  } catch (const SpoiledCoefficients&) {
  } catch (const JpegFailure&) {
    if (!band_) throw;
  }
  options.decoder = Decoder::kLibjpeg;
  JpegReader again(data_, size_, limits_, tolerant_);
  // What was planned for this picture must not be done to another one.
  if (!again.header_.is_laid_out_as(header_)) {
    throw JpegFailure(ErrorKind::kCorrupt, "the bytes change while they are read");
  }
  return again.read(options);
}

Picture JpegReader::read_once(const ReadOptions& options) {
  const std::vector<PlaneShape> shapes = plane_shapes();
  if (options.pixels) set_output(options);
  check_cost(options, shapes);

  Picture picture;
  make_coefficients(options, shapes, picture);
  if (options.pixels) {
    decode_coefficients_for_output();
  } else {
    decode_coefficients();
  }
  check_complete();
  collect_quant_tables();
  if (options.sink != nullptr) send_coefficients(*options.sink);
  if (options.pixels) picture.pixels = output_pixels(options);
  if (band_ && !band_->decode_rest()) throw SpoiledCoefficients();
  picture.header = header_;
  picture.warnings = errors_.warnings();
  picture.warning_count = errors_.warning_count();
  picture.own_scans = own_scans_;
  return picture;
}

// Makes the memory that coefficients are decoded into: an arena that the picture owns, or a band.
void JpegReader::make_coefficients(const ReadOptions& options, const std::vector<PlaneShape>& shapes,
                                   Picture& picture) {
  decoder_.emplace(options.decoder, size_, cinfo_, CoefficientArena::bytes_for(shapes));
  const bool by_rows = options.sink != nullptr && decoder_->fills_arena(cinfo_);
  if (by_rows) {
    std::vector<std::uint32_t> rows;
    for (const Component& component : header_.components) rows.push_back(static_cast<std::uint32_t>(component.v));
    band_.emplace(shapes, rows, *decoder_);
    band_->attach_to(cinfo_);
    return;
  }
  const bool zeroed = !decoder_->fills_arena(cinfo_);
  picture.coefficients = std::make_unique<CoefficientArena>(shapes, zeroed, options.output.coefficients);
  arena_ = picture.coefficients.get();
  arena_->attach_to(cinfo_);
}

void JpegReader::send_coefficients(CoefficientSink& sink) {
  sink.begin(header_);
  if (band_) return band_->send_to(&sink);
  for (std::size_t i = 0; i < header_.components.size(); ++i) {
    const std::size_t row_values = std::size_t{arena_->shape(i).padded_width_in_blocks} * DCTSIZE2;
    for (std::uint32_t y = 0; y < header_.components[i].height_in_blocks; ++y) {
      sink.take(i, y, arena_->plane(i) + y * row_values);
    }
  }
}

std::vector<PlaneShape> JpegReader::plane_shapes() const {
  std::vector<PlaneShape> shapes;
  for (const Component& component : header_.components) {
    shapes.push_back({component.width_in_blocks, component.height_in_blocks,
                      round_up(component.width_in_blocks, static_cast<std::uint32_t>(component.h)),
                      round_up(component.height_in_blocks, static_cast<std::uint32_t>(component.v))});
  }
  return shapes;
}

// libjpeg calls this before each step that consumes input, and so does our own loop.
void JpegReader::before_input(j_common_ptr cinfo) {
  check_scan_number(cinfo);
  reader_of(cinfo).decode_new_scan();
}

// Note [Our scans inside libjpeg's]: between a scan's header and its data, our decoder may decode the data. Then it has
// moved the source to the next marker, and libjpeg is told that a row has no MCUs: it goes through the rows without
// reading anything, and on to that marker. So all headers, all checks of them and all warnings stay libjpeg's, and a
// scan that our decoder leaves alone is decoded by libjpeg as if there were no other.
//
// A marker that was read already, after a forgiven error, means that no data follows.
void JpegReader::decode_new_scan() {
  const bool is_ready = arena_ != nullptr || band_;
  if (!is_ready || cinfo_.input_scan_number == scan_) return;
  scan_ = cinfo_.input_scan_number;
  check_scan_blocks();
  if (cinfo_.unread_marker != 0 && !band_) return;
  const bool decodes = band_ ? decoder_->start_rows(cinfo_, *band_) : decoder_->decode_scan(cinfo_, *arena_);
  if (decodes) {
    cinfo_.MCUs_per_row = 0;
    ++own_scans_;
  } else if (decoder_->spoiled()) {
    ErrorManager::fail(reinterpret_cast<j_common_ptr>(&cinfo_), ErrorKind::kCorrupt, "spoiled");
  }
}

// Decodes scans. After a fatal error a tolerant reader keeps those before it: libjpeg is told that the file ended
// there, and finishes as after any last scan.
template <typename Step>
void JpegReader::run_scans(const Step& step) {
  if (errors_.guarded(step)) return;
  if (decoder_->spoiled()) throw SpoiledCoefficients();
  if (!tolerant_ || !errors_.may_forgive() || !has_finished_a_scan()) throw errors_.failure();
  errors_.forgive();
  cinfo_.unread_marker = JPEG_EOI;
  run(step);
}

// libjpeg leaves the row counter at its end until the next scan really starts.
bool JpegReader::has_finished_a_scan() const { return cinfo_.input_iMCU_row >= cinfo_.total_iMCU_rows; }

void JpegReader::decode_coefficients() {
  run_scans([this] { jpeg_read_coefficients(&cinfo_); });
}

// Buffered-image mode keeps the coefficients of the whole picture, whatever the process, and lets an output pass run
// over them after the last scan. Entropy decoding happens once, and the pixels are those of an ordinary decode.
//
// Note [AC coefficients at one eighth]: libjpeg's sequential Huffman decoder drops the AC coefficients of components
// whose IDCT makes one sample per block. It looks at their DCT_scaled_size when a scan starts, the first one inside
// jpeg_start_decompress, right after the arrays are realized and when all buffers have their size. So that size is
// lifted there and restored before the output pass.
void JpegReader::decode_coefficients_for_output() {
  run([this] {
    realize_virt_arrays_ = cinfo_.mem->realize_virt_arrays;
    cinfo_.mem->realize_virt_arrays = realize_then_lift_scales;
    cinfo_.buffered_image = TRUE;
    jpeg_start_decompress(&cinfo_);
  });
  run_scans([this] {
    const j_common_ptr common = reinterpret_cast<j_common_ptr>(&cinfo_);
    do {
      before_input(common);
    } while (jpeg_consume_input(&cinfo_) != JPEG_REACHED_EOI);
  });
  restore_scales();
  check_smoothing();
}

// Where bits of coefficients are missing in the end, libjpeg smooths the blocks, down to the row that it has decoded
// last. It has decoded none of ours.
void JpegReader::check_smoothing() const {
  if (!header_.progressive || own_scans_ == 0) return;
  for (std::size_t i = 0; i < header_.components.size(); ++i) {
    if (!has_every_coefficient(i)) throw SpoiledCoefficients();
  }
}

void JpegReader::realize_then_lift_scales(j_common_ptr cinfo) {
  JpegReader& self = reader_of(cinfo);
  self.realize_virt_arrays_(cinfo);
  self.lift_scales();
}

void JpegReader::lift_scales() {
  for (int i = 0; i < cinfo_.num_components; ++i) {
    int& size = scaled_size(cinfo_.comp_info[i]);
    lifted_[i] = size == 1;
    if (lifted_[i]) size = 2;
  }
}

void JpegReader::restore_scales() {
  for (int i = 0; i < cinfo_.num_components; ++i) {
    if (lifted_[i]) scaled_size(cinfo_.comp_info[i]) = 1;
  }
}

// Finds what libjpeg does not warn about: a component without any scan, and a file that ends between two scans or in
// arithmetic-coded data. A missing EOI after the last block is not a truncation: nothing of the picture is lost.
void JpegReader::check_complete() {
  if (tolerant_) return;
  const ErrorKind kind = errors_.input_ended() ? ErrorKind::kTruncated : ErrorKind::kCorrupt;
  for (std::size_t i = 0; i < header_.components.size(); ++i) {
    if (cinfo_.comp_info[i].quant_table == nullptr) {
      throw JpegFailure(kind, format("component %d has no scan", header_.components[i].id));
    }
    if (errors_.input_ended() && !has_every_coefficient(i)) {
      throw JpegFailure(kind, format("the data ends before component %d is complete", header_.components[i].id));
    }
  }
}

bool JpegReader::has_every_coefficient(std::size_t component) const {
  if (header_.arithmetic) return false;  // the decoder reads past the end without notice: nobody can tell
  if (!header_.progressive) return true;
  const int* bits = cinfo_.coef_bits[component];
  return std::all_of(bits, bits + DCTSIZE2, [](int missing_bits) { return missing_bits == 0; });
}

// A table may be redefined between scans: the one in force is the copy that libjpeg took at the component's first scan.
void JpegReader::collect_quant_tables() {
  for (std::size_t i = 0; i < header_.components.size(); ++i) {
    Component& component = header_.components[i];
    if (auto table = copy_table(cinfo_.comp_info[i].quant_table)) component.quant_table = table;
    if (!component.quant_table) {
      throw JpegFailure(ErrorKind::kCorrupt, format("component %d has no quantization table", component.id));
    }
  }
}

}  // namespace afd
