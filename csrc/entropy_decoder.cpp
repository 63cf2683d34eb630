#include "entropy_decoder.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "block_decoders.h"
#include "huffman_tables.h"
#include "unstuff.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define AFD_HAS_AVX2_DECODER 1
#endif

namespace afd {
namespace {

// Decodes `count` MCUs, which must be all that the segment holds.
template <Coding kCoding>
AFD_INLINE bool decode_mcus(Scan& scan, const std::uint8_t* data, std::size_t size, std::uint64_t count) {
  BitReader reader(data);
  const std::uint8_t* const limit = data + size + 8;
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
  const std::ptrdiff_t left = 8 * static_cast<std::ptrdiff_t>(size) - reader.position();
  return left >= 0 && left < 8 && scan.end_of_band_run == 0;
}

using DecodeMcus = bool (*)(Scan&, const std::uint8_t*, std::size_t, std::uint64_t);

template <Coding kCoding>
bool decode_mcus_portable(Scan& scan, const std::uint8_t* data, std::size_t size, std::uint64_t count) {
  return decode_mcus<kCoding>(scan, data, size, count);
}

#ifdef AFD_HAS_AVX2_DECODER
template <Coding kCoding>
__attribute__((target("avx2,bmi,bmi2"))) bool decode_mcus_avx2(Scan& scan, const std::uint8_t* data, std::size_t size,
                                                               std::uint64_t count) {
  return decode_mcus<kCoding>(scan, data, size, count);
}
#endif

template <Coding kCoding>
DecodeMcus decode_mcus_for(Decoder decoder) {
#ifdef AFD_HAS_AVX2_DECODER
  if (decoder == Decoder::kFastest && has_vector_decoder()) return decode_mcus_avx2<kCoding>;
#endif
  (void)decoder;
  return decode_mcus_portable<kCoding>;
}

DecodeMcus decode_mcus_for(Coding coding, Decoder decoder) {
  switch (coding) {
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

// The scan as libjpeg's public fields describe it.
bool describe_scan(const jpeg_decompress_struct& cinfo, const CoefficientArena& arena, TableCache& tables, Scan& scan) {
  scan.mcus_per_row = cinfo.MCUs_per_row;
  scan.mcu_rows = cinfo.MCU_rows_in_scan;
  scan.start = cinfo.Ss;
  scan.end = cinfo.Se;
  scan.shift = cinfo.Al;
  scan.arena = arena.plane(0);
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    const jpeg_component_info& component = *cinfo.cur_comp_info[c];
    const auto plane = static_cast<std::size_t>(component.component_index);
    const std::uint32_t stride = arena.shape(plane).padded_width_in_blocks;
    McuBlock block{};
    if (!find_tables(cinfo, component, coding_of(cinfo), tables, block)) return false;
    block.component = c;
    block.step = std::ptrdiff_t{component.MCU_width} * DCTSIZE2;
    block.row_step = std::ptrdiff_t{component.MCU_height} * stride * DCTSIZE2;
    for (int y = 0; y < component.MCU_height; ++y) {
      for (int x = 0; x < component.MCU_width; ++x) {
        block.first = block.next = arena.plane(plane) + (std::ptrdiff_t{y} * stride + x) * DCTSIZE2;
        scan.blocks[scan.block_count++] = block;
      }
    }
  }
  return true;
}

}  // namespace

bool has_vector_decoder() {
#ifdef AFD_HAS_AVX2_DECODER
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

EntropyDecoder::EntropyDecoder(Decoder decoder, std::size_t size, const jpeg_decompress_struct& cinfo,
                               std::uint64_t arena_bytes)
    : decoder_(decoder), tables_(tables_of_this_thread()), scratch_(allocate_bytes(size + kPadding)) {
  if (accepts(cinfo) && cinfo.progressive_mode) nonzero_.resize(arena_bytes / sizeof(JBLOCK));
  for (auto& bits : missing_bits_) std::fill(std::begin(bits), std::end(bits), kUnseen);
}

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
  Scan scan;
  const bool is_plain = is_in_order(cinfo) && describe_scan(cinfo, arena, *tables_, scan);
  if (is_plain && decode_segments(cinfo, scan)) return true;
  gave_up_ = true;
  spoiled_ = is_plain && cinfo.progressive_mode;
  for (int c = 0; c < cinfo.comps_in_scan; ++c) {
    if (cinfo.progressive_mode || !is_first[c]) continue;
    arena.clear_plane(static_cast<std::size_t>(cinfo.cur_comp_info[c]->component_index));
  }
  return false;
}

bool EntropyDecoder::decode_segments(jpeg_decompress_struct& cinfo, Scan& scan) {
  const DecodeMcus decode = decode_mcus_for(coding_of(cinfo), decoder_);
  scan.nonzero = nonzero_.data();
  const std::uint8_t* data = cinfo.src->next_input_byte;
  const std::uint8_t* const end = data + cinfo.src->bytes_in_buffer;
  std::uint64_t mcus_left = std::uint64_t{cinfo.MCUs_per_row} * cinfo.MCU_rows_in_scan;
  const std::uint64_t interval = cinfo.restart_interval == 0 ? mcus_left : cinfo.restart_interval;
  for (unsigned restart = 0;; restart = (restart + 1) % 8) {
    const Segment segment = unstuff(data, end, scratch_.get());
    if (segment.end_marker == nullptr) return false;
    std::memset(scratch_.get() + segment.size, 0, kPadding);
    const std::uint64_t count = std::min(mcus_left, interval);
    if (!decode(scan, scratch_.get(), segment.size, count)) return false;
    data = segment.end_marker;
    mcus_left -= count;
    if (mcus_left == 0) break;
    if (data[1] != JPEG_RST0 + restart) return false;
    data += 2;
    std::fill(scan.last_dc, scan.last_dc + MAX_COMPS_IN_SCAN, 0);
  }
  cinfo.src->next_input_byte = data;
  cinfo.src->bytes_in_buffer = static_cast<std::size_t>(end - data);
  return true;
}

}  // namespace afd
