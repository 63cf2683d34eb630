#include "entropy_decoder.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "block_decoders.h"
#include "huffman_tables.h"
#include "processor.h"
#include "row_band.h"
#include "unstuff.h"

namespace afd {
namespace {

// Decodes `count` MCUs of a segment of `size` bytes, wherever `state` is in it. See Note [Registers].
template <Coding kCoding>
AFD_ALWAYS_INLINE bool decode_mcus(Scan& scan, BitReader& state, std::size_t size, std::uint64_t count) {
  BitReader reader = state;
  const std::uint8_t* const limit = reader.start + size + 8;
  for (; count > 0; --count) {
    for (int i = 0; i < scan.block_count; ++i) {
      McuBlock& block = scan.blocks[i];
      if (!decode_block<kCoding>(reader, scan, block) || reader.next > limit) return false;
      block.next += block.step;
    }
    if (++scan.column == scan.mcus_per_row) {
      scan.column = 0;
      if (++scan.row < scan.mcu_rows) scan.start_row();
    }
  }
  state = reader;
  return true;
}

using DecodeMcus = bool (*)(Scan&, BitReader&, std::size_t, std::uint64_t);

template <Coding kCoding>
bool decode_mcus_portable(Scan& scan, BitReader& state, std::size_t size, std::uint64_t count) {
  return decode_mcus<kCoding>(scan, state, size, count);
}

#ifdef AFD_HAS_AVX2
template <Coding kCoding>
__attribute__((target("avx2,bmi,bmi2"))) bool decode_mcus_avx2(Scan& scan, BitReader& state, std::size_t size,
                                                               std::uint64_t count) {
  return decode_mcus<kCoding>(scan, state, size, count);
}
#endif

template <Coding kCoding>
DecodeMcus decode_mcus_for(Decoder decoder) {
#ifdef AFD_HAS_AVX2
  if (decoder == Decoder::kFastest && has_vector_decoder()) return decode_mcus_avx2<kCoding>;
#endif
  (void)decoder;
  return decode_mcus_portable<kCoding>;
}

DecodeMcus decode_mcus_for(Coding coding, Decoder decoder) {
  switch (coding) {
    case Coding::kSkipped:
      return decode_mcus_for<Coding::kSkipped>(decoder);
    case Coding::kDcFirst:
      return decode_mcus_for<Coding::kDcFirst>(decoder);
    case Coding::kDcRefinement:
      return decode_mcus_for<Coding::kDcRefinement>(decoder);
    case Coding::kAcFirst:
      return decode_mcus_for<Coding::kAcFirst>(decoder);
    case Coding::kAcRefinement:
      return decode_mcus_for<Coding::kAcRefinement>(decoder);
    default:
      return decode_mcus_for<Coding::kSequential>(decoder);
  }
}

Coding coding_of(const jpeg_decompress_struct& cinfo) {
  if (!cinfo.progressive_mode) return Coding::kSequential;
  if (cinfo.Ss == 0) return cinfo.Ah == 0 ? Coding::kDcFirst : Coding::kDcRefinement;
  return cinfo.Ah == 0 ? Coding::kAcFirst : Coding::kAcRefinement;
}

TableCache* tables_of_this_thread() {
  thread_local const std::unique_ptr<TableCache> tables = std::make_unique<TableCache>();
  return tables.get();
}

// Null for a number that no table can have: libjpeg checks only those that the scan uses.
const JHUFF_TBL* table_at(JHUFF_TBL* const (&tables)[NUM_HUFF_TBLS], int number) {
  return number >= 0 && number < NUM_HUFF_TBLS ? tables[number] : nullptr;
}

// Fills in the tables that the scan's component needs.
bool find_tables(const jpeg_decompress_struct& cinfo, const jpeg_component_info& component, Coding coding,
                 TableCache& tables, McuBlock& block) {
  if (coding == Coding::kDcRefinement) return true;
  const bool has_dc = coding == Coding::kSequential || coding == Coding::kDcFirst;
  const JHUFF_TBL* dc = table_at(cinfo.dc_huff_tbl_ptrs, component.dc_tbl_no);
  const JHUFF_TBL* ac = table_at(cinfo.ac_huff_tbl_ptrs, component.ac_tbl_no);
  const JHUFF_TBL* symbols = has_dc ? dc : ac;
  if (symbols == nullptr) return false;
  block.symbol_table = tables.symbol_table(*symbols);
  if (block.symbol_table == nullptr || (has_dc && block.symbol_table->largest_symbol > 15)) return false;
  if (coding != Coding::kSequential) return true;
  block.ac_table = ac == nullptr ? nullptr : tables.ac_table(*ac);
  return block.ac_table != nullptr;
}

// The scan as libjpeg's public fields describe it. `Planes` is an arena or a band.
template <typename Planes>
bool describe_scan(const jpeg_decompress_struct& cinfo, const Planes& planes, TableCache& tables, Scan& scan) {
  scan.mcus_per_row = cinfo.MCUs_per_row;
  scan.mcu_rows = cinfo.MCU_rows_in_scan;
  scan.start = cinfo.Ss;
  scan.end = cinfo.Se;
  scan.shift = cinfo.Al;
  scan.arena = planes.plane(0);
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    const jpeg_component_info& component = *cinfo.cur_comp_info[c];
    const auto plane = static_cast<std::size_t>(component.component_index);
    const std::uint32_t stride = planes.shape(plane).padded_width_in_blocks;
    McuBlock block{};
    if (!find_tables(cinfo, component, coding_of(cinfo), tables, block)) return false;
    block.component = c;
    block.step = std::ptrdiff_t{component.MCU_width} * DCTSIZE2;
    block.row_step = Planes::kHoldsAllRows ? std::ptrdiff_t{component.MCU_height} * stride * DCTSIZE2 : 0;
    for (int y = 0; y < component.MCU_height; ++y) {
      for (int x = 0; x < component.MCU_width; ++x) {
        block.first = block.next = planes.plane(plane) + (std::ptrdiff_t{y} * stride + x) * DCTSIZE2;
        scan.blocks[scan.block_count++] = block;
      }
    }
  }
  return true;
}

// The marker that ends a scan's data, restart markers aside; null if there is none. As in `unstuff`, one with fill
// bytes in front counts as none.
const std::uint8_t* end_of_scan(const std::uint8_t* data, const std::uint8_t* end) {
  while (data < end) {
    const void* found = std::memchr(data, 0xFF, static_cast<std::size_t>(end - data));
    if (found == nullptr) return nullptr;
    const auto* marker = static_cast<const std::uint8_t*>(found);
    if (end - marker < 2 || marker[1] == 0xFF) return nullptr;
    const bool is_restart = marker[1] >= JPEG_RST0 && marker[1] < JPEG_RST0 + 8;
    if (marker[1] != 0 && !is_restart) return marker;
    data = marker + 2;
  }
  return nullptr;
}

void skip_to(jpeg_decompress_struct& cinfo, const std::uint8_t* marker) {
  jpeg_source_mgr& source = *cinfo.src;
  source.bytes_in_buffer -= static_cast<std::size_t>(marker - source.next_input_byte);
  source.next_input_byte = marker;
}

}  // namespace

// A scan's entropy-coded data, which is decoded some MCUs at a time. Any function that returns false ends it.
class ScanData {
 public:
  // `scratch` has room for the data and kPadding bytes.
  void start(const jpeg_decompress_struct& cinfo, std::uint8_t* scratch) {
    scratch_ = scratch;
    data_ = cinfo.src->next_input_byte;
    end_ = data_ + cinfo.src->bytes_in_buffer;
    mcus_left_ = std::uint64_t{cinfo.MCUs_per_row} * cinfo.MCU_rows_in_scan;
    interval_ = cinfo.restart_interval == 0 ? mcus_left_ : cinfo.restart_interval;
    left_in_segment_ = 0;
    is_first_ = true;
    restart_ = 0;
  }

  // Opens a segment if none is open.
  bool open() { return left_in_segment_ > 0 || open_segment(); }

  bool decode(std::uint64_t count, DecodeMcus decode_mcus) {
    while (count > 0) {
      if (!open()) return false;
      const std::uint64_t some = std::min(count, left_in_segment_);
      if (!decode_mcus(scan, reader_, size_, some)) return false;
      count -= some;
      mcus_left_ -= some;
      left_in_segment_ -= some;
      if (left_in_segment_ == 0 && !is_segment_used_up()) return false;
    }
    return true;
  }

  std::uint64_t mcus_left() const { return mcus_left_; }
  // The marker behind the segment that was opened last.
  const std::uint8_t* end_of_segment() const { return data_; }

  Scan scan;

 private:
  bool open_segment() {
    if (!is_first_) {
      if (data_[1] != JPEG_RST0 + restart_) return false;
      data_ += 2;
      restart_ = (restart_ + 1) % 8;
      std::fill(scan.last_dc, scan.last_dc + MAX_COMPS_IN_SCAN, 0);
    }
    is_first_ = false;
    const Segment segment = unstuff(data_, end_, scratch_);
    if (segment.end_marker == nullptr) return false;
    std::memset(scratch_ + segment.size, 0, kPadding);
    size_ = segment.size;
    data_ = segment.end_marker;
    reader_ = BitReader(scratch_);
    reader_.refill();
    left_in_segment_ = std::min(mcus_left_, interval_);
    return true;
  }

  bool is_segment_used_up() const {
    const std::ptrdiff_t left = 8 * static_cast<std::ptrdiff_t>(size_) - reader_.position();
    return left >= 0 && left < 8 && scan.end_of_band_run == 0;
  }

  std::uint8_t* scratch_ = nullptr;
  const std::uint8_t* data_ = nullptr;
  const std::uint8_t* end_ = nullptr;
  std::uint64_t mcus_left_ = 0;
  std::uint64_t interval_ = 0;
  std::uint64_t left_in_segment_ = 0;
  std::size_t size_ = 0;  // of the segment
  bool is_first_ = true;
  unsigned restart_ = 0;  // number of the marker in front of the next segment
  BitReader reader_{nullptr};
};

bool has_vector_decoder() {
#ifdef AFD_HAS_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

EntropyDecoder::EntropyDecoder(Decoder decoder, std::size_t size, const jpeg_decompress_struct& cinfo,
                               std::uint64_t arena_bytes)
    : decoder_(decoder),
      tables_(tables_of_this_thread()),
      scratch_(allocate_bytes(size + kPadding)),
      rows_(std::make_unique<ScanData>()) {
  if (accepts(cinfo) && cinfo.progressive_mode) nonzero_.resize(arena_bytes / sizeof(JBLOCK));
  for (auto& bits : missing_bits_) std::fill(std::begin(bits), std::end(bits), kUnseen);
}

EntropyDecoder::~EntropyDecoder() = default;

bool EntropyDecoder::accepts(const jpeg_decompress_struct& cinfo) const {
  return !gave_up_ && decoder_ != Decoder::kLibjpeg && !cinfo.arith_code;
}

bool EntropyDecoder::fills_arena(const jpeg_decompress_struct& cinfo) const {
  const jpeg_component_info& first = cinfo.comp_info[0];
  const bool padded = cinfo.num_components == 1 && (first.h_samp_factor != 1 || first.v_samp_factor != 1);
  const bool whole = !cinfo.progressive_mode && cinfo.comps_in_scan == cinfo.num_components;
  return accepts(cinfo) && whole && !padded;
}

// Whether each of the scan's coefficients comes for the first time, or with the next of its bits.
bool EntropyDecoder::is_in_order(const jpeg_decompress_struct& cinfo) {
  const bool whole_blocks = cinfo.Ss == 0 && cinfo.Se == DCTSIZE2 - 1 && cinfo.Ah == 0 && cinfo.Al == 0;
  if (!cinfo.progressive_mode && !whole_blocks) return false;
  if (cinfo.Ah != 0 && cinfo.Ah != cinfo.Al + 1) return false;
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    auto& missing_bits = missing_bits_[cinfo.cur_comp_info[c]->component_index];
    if (cinfo.Ss > 0 && missing_bits[0] == kUnseen) return false;
    for (int k = cinfo.Ss; k <= cinfo.Se; ++k) {
      if (missing_bits[k] != (cinfo.Ah == 0 ? kUnseen : cinfo.Ah)) return false;
      missing_bits[k] = static_cast<std::int8_t>(cinfo.Al);
    }
  }
  return true;
}

// Once libjpeg has decoded a scan, it decodes all that follow: it counts the bytes that it skips in one scan and may
// complain in a later one. It also lays a component's second sequential scan over the first, which we must not clear.
bool EntropyDecoder::decode_scan(jpeg_decompress_struct& cinfo, CoefficientArena& arena) noexcept {
  if (!accepts(cinfo)) return false;
  bool is_first[MAX_COMPS_IN_SCAN] = {};
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    is_first[c] = missing_bits_[cinfo.cur_comp_info[c]->component_index][0] == kUnseen;
  }
  ScanData data;
  const bool is_plain = is_in_order(cinfo) && describe_scan(cinfo, arena, *tables_, data.scan);
  if (is_plain) {
    data.scan.nonzero = nonzero_.data();
    data.start(cinfo, scratch_.get());
    if (data.decode(data.mcus_left(), decode_mcus_for(coding_of(cinfo), decoder_))) {
      skip_to(cinfo, data.end_of_segment());
      return true;
    }
  }
  gave_up_ = true;
  spoiled_ = is_plain && cinfo.progressive_mode;
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    if (cinfo.progressive_mode || !is_first[c]) continue;
    arena.clear_plane(static_cast<std::size_t>(cinfo.cur_comp_info[c]->component_index));
  }
  return false;
}

bool EntropyDecoder::start_rows(jpeg_decompress_struct& cinfo, RowBand& band) noexcept {
  const bool starts =
      !rows_started_ && is_in_order(cinfo) && describe_scan(cinfo, band, *tables_, rows_->scan) && find_end(cinfo);
  spoiled_ = !starts;
  if (!starts) return false;
  rows_started_ = true;
  wanted_ = {0, rows_->scan.mcus_per_row, 0, rows_->scan.mcu_rows};
  skip_to(cinfo, end_of_rows_);
  return true;
}

// Without restarts the end of the scan's data comes with the one segment that it is; else it is looked for.
bool EntropyDecoder::find_end(const jpeg_decompress_struct& cinfo) {
  rows_->start(cinfo, scratch_.get());
  if (cinfo.restart_interval == 0) {
    end_of_rows_ = rows_->open() ? rows_->end_of_segment() : nullptr;
  } else {
    const std::uint8_t* data = cinfo.src->next_input_byte;
    end_of_rows_ = end_of_scan(data, data + cinfo.src->bytes_in_buffer);
  }
  return end_of_rows_ != nullptr;
}

bool EntropyDecoder::has_rows_left() const { return rows_->mcus_left() > 0; }

bool EntropyDecoder::decode_row() noexcept {
  const bool decodes = has_rows_left() && decode_wanted();
  spoiled_ = !decodes || (!has_rows_left() && rows_->end_of_segment() != end_of_rows_);
  return !spoiled_;
}

// The next row of MCUs: the blocks before and behind those that are wanted are passed over.
bool EntropyDecoder::decode_wanted() {
  const std::uint32_t width = rows_->scan.mcus_per_row;
  const bool is_wanted = wanted_.first_row <= rows_->scan.row && rows_->scan.row < wanted_.end_row;
  const std::uint32_t first = is_wanted ? wanted_.first_column : width;
  const std::uint32_t end = is_wanted ? std::min(wanted_.end_column, width) : width;
  const DecodeMcus skip = decode_mcus_for(Coding::kSkipped, decoder_);
  return rows_->decode(first, skip) && rows_->decode(end - first, decode_mcus_for(Coding::kSequential, decoder_)) &&
         rows_->decode(width - end, skip);
}

}  // namespace afd
