#include "error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <type_traits>

namespace afd {
namespace {

ErrorKind kind_of_error(int code) {
  switch (code) {
    case JERR_OUT_OF_MEMORY:
      return ErrorKind::kOutOfMemory;
    case JERR_ARITH_NOTIMPL:
    case JERR_BAD_PRECISION:
    case JERR_CCIR601_NOTIMPL:
    case JERR_COMPONENT_COUNT:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_EMPTY_IMAGE:  // the height comes later, in a DNL marker
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_IMAGE_TOO_BIG:  // libjpeg's own bound on a side, which no limit of ours raises
    case JERR_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_SOF_UNSUPPORTED:
    case JERR_WIDTH_OVERFLOW:
      return ErrorKind::kUnsupported;
    default:
      return ErrorKind::kCorrupt;
  }
}

// Whether a warning means that the coefficients are not what the encoder wrote. The others concern bytes that carry no
// coefficients: padding between segments, odd JFIF, Adobe or ICC headers.
bool means_corrupt_data(int code) {
  switch (code) {
    case JWRN_ARITH_BAD_CODE:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
      return true;
    default:
      return false;
  }
}

ErrorManager& manager_of(j_common_ptr cinfo) { return *reinterpret_cast<ErrorManager*>(cinfo->err); }

}  // namespace

std::string format(const char* pattern, ...) {
  char text[320];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

ErrorManager::ErrorManager(bool tolerant) : tolerant_(tolerant) {
  static_assert(std::is_standard_layout_v<ErrorManager>, "libjpeg's pointer must be convertible to ours");
  jpeg_std_error(&base_);
  base_.error_exit = on_error;
  base_.emit_message = on_message;
  base_.output_message = on_output;
}

void ErrorManager::fail(j_common_ptr cinfo, ErrorKind kind, const char* message) {
  ErrorManager& self = manager_of(cinfo);
  std::snprintf(self.fatal_text_, sizeof self.fatal_text_, "%s", message);
  self.stop(kind);
}

std::vector<std::string> ErrorManager::warnings() const {
  const std::size_t kept = warning_count_ < kMaxWarningTexts ? warning_count_ : kMaxWarningTexts;
  return std::vector<std::string>(warning_texts_, warning_texts_ + kept);
}

void ErrorManager::on_error(j_common_ptr cinfo) {
  ErrorManager& self = manager_of(cinfo);
  self.base_.format_message(cinfo, self.fatal_text_);
  self.stop(kind_of_error(self.base_.msg_code));
}

// Negative levels are warnings; zero and above are a trace that nobody asked for.
void ErrorManager::on_message(j_common_ptr cinfo, int level) {
  if (level >= 0) return;
  ErrorManager& self = manager_of(cinfo);
  self.record_warning(cinfo);
  if (!self.tolerant_ && means_corrupt_data(self.base_.msg_code)) {
    self.base_.format_message(cinfo, self.fatal_text_);
    self.stop(ErrorKind::kCorrupt);
  }
}

// Whatever goes wrong once the bytes have run out goes wrong because they have.
void ErrorManager::stop(ErrorKind kind) {
  if (input_ended_ && kind == ErrorKind::kCorrupt) {
    kind = ErrorKind::kTruncated;
    const std::size_t used = std::strlen(fatal_text_);
    std::snprintf(fatal_text_ + used, sizeof fatal_text_ - used, " (%.*s)", JMSG_LENGTH_MAX, end_of_input_text_);
  }
  fatal_kind_ = kind;
  longjmp(escape_, 1);
}

void ErrorManager::record_warning(j_common_ptr cinfo) {
  const bool end_of_input = base_.msg_code == JWRN_JPEG_EOF;
  if (end_of_input && input_ended_) return;  // libjpeg repeats it at every refill
  if (end_of_input) {
    input_ended_ = true;
    base_.format_message(cinfo, end_of_input_text_);
  }
  char* text = next_warning_text();
  if (text != nullptr) base_.format_message(cinfo, text);
}

// By the time that libjpeg refuses a second frame header, it has stored that header's size and number of components
// over those that all its buffers were made for.
bool ErrorManager::may_forgive() const {
  const bool damage = fatal_kind_ == ErrorKind::kCorrupt || fatal_kind_ == ErrorKind::kTruncated;
  return damage && base_.msg_code != JERR_SOF_DUPLICATE;
}

void ErrorManager::forgive() {
  char* text = next_warning_text();
  if (text != nullptr) std::snprintf(text, JMSG_LENGTH_MAX, "%.*s", JMSG_LENGTH_MAX - 1, fatal_text_);
}

// Counts a warning; null if its text is one too many.
char* ErrorManager::next_warning_text() {
  const std::size_t index = warning_count_++;
  return index < kMaxWarningTexts ? warning_texts_[index] : nullptr;
}

}  // namespace afd
