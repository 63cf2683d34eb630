#pragma once

#include <setjmp.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "libjpeg.h"

namespace afd {

enum class ErrorKind { kEmpty, kCorrupt, kTruncated, kUnsupported, kTooLarge, kOutOfMemory, kOutputTooSmall };

// printf into a string of up to 319 characters.
__attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...);

// The only exception that the reader throws on bad input.
class JpegFailure : public std::runtime_error {
 public:
  JpegFailure(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// libjpeg's error manager: it never prints and never exits. A fatal error jumps back to the `guarded` call that is
// running; warnings are collected.
//
// The callbacks run below libjpeg's C frames, where no C++ exception may pass: they therefore use fixed buffers only.
class ErrorManager {
 public:
  static constexpr std::size_t kMaxWarningTexts = 16;

  explicit ErrorManager(bool tolerant);

  jpeg_error_mgr* base() { return &base_; }

  // Ends the running `guarded` call with an error of our own.
  [[noreturn]] static void fail(j_common_ptr cinfo, ErrorKind kind, const char* message);

  JpegFailure failure() const { return JpegFailure(fatal_kind_, fatal_text_); }
  // Whether the failure lies in the data, not in a limit or a missing feature, and left libjpeg's state usable.
  bool may_forgive() const;
  // Makes a warning of the failure.
  void forgive();
  bool input_ended() const { return input_ended_; }
  std::size_t warning_count() const { return warning_count_; }
  std::vector<std::string> warnings() const;

  // Runs `step`; returns false if libjpeg reported a fatal error in it. This is the only function with a `setjmp`; it
  // owns nothing, and neither may `step` own anything with a destructor: the jump does not run destructors.
  template <typename Step>
  bool guarded(const Step& step) {
    if (setjmp(escape_) != 0) return false;
    step();
    return true;
  }

 private:
  static void on_error(j_common_ptr cinfo);
  static void on_message(j_common_ptr cinfo, int level);
  static void on_output(j_common_ptr) {}

  [[noreturn]] void stop(ErrorKind kind);
  void record_warning(j_common_ptr cinfo);
  char* next_warning_text();

  jpeg_error_mgr base_{};  // first, so that libjpeg's pointer to it is a pointer to this object
  jmp_buf escape_{};
  bool tolerant_;
  bool input_ended_ = false;
  ErrorKind fatal_kind_ = ErrorKind::kCorrupt;
  char fatal_text_[2 * JMSG_LENGTH_MAX] = {};
  char end_of_input_text_[JMSG_LENGTH_MAX] = {};
  std::size_t warning_count_ = 0;
  char warning_texts_[kMaxWarningTexts][JMSG_LENGTH_MAX] = {};
};

}  // namespace afd
