#pragma once

// What the bindings of the extension share.

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstdint>
#include <exception>
#include <new>

#include "error.h"
#include "pixels.h"

namespace afd {

// The classes of afd_serve.errors, looked up once.
struct ErrorClasses {
  pybind11::object empty;
  pybind11::object corrupt;
  pybind11::object truncated;
  pybind11::object unsupported;
  pybind11::object too_large;
  pybind11::object output_too_small;

  static ErrorClasses load() {
    const auto errors = pybind11::module_::import("afd_serve.errors");
    return {errors.attr("EmptyInputError"),      errors.attr("CorruptJpegError"),  errors.attr("TruncatedJpegError"),
            errors.attr("UnsupportedJpegError"), errors.attr("JpegTooLargeError"), errors.attr("OutputTooSmallError")};
  }

  const pybind11::object& of(ErrorKind kind) const {
    switch (kind) {
      case ErrorKind::kEmpty:
        return empty;
      case ErrorKind::kTruncated:
        return truncated;
      case ErrorKind::kUnsupported:
        return unsupported;
      case ErrorKind::kTooLarge:
        return too_large;
      case ErrorKind::kOutputTooSmall:
        return output_too_small;
      default:
        return corrupt;
    }
  }

  [[noreturn]] void raise(const JpegFailure& failure) const {
    if (failure.kind() == ErrorKind::kOutOfMemory) throw std::bad_alloc();
    PyErr_SetString(of(failure.kind()).ptr(), failure.what());
    throw pybind11::error_already_set();
  }

  // The exception as an object.
  pybind11::object made_of(const std::exception_ptr& failure) const {
    try {
      std::rethrow_exception(failure);
    } catch (const JpegFailure& caught) {
      if (caught.kind() != ErrorKind::kOutOfMemory) return of(caught.kind())(caught.what());
    } catch (const std::bad_alloc&) {
    }
    return pybind11::reinterpret_borrow<pybind11::object>(PyExc_MemoryError)();
  }
};

// Gives the GIL away as long as it lives. Where the interpreter has ended meanwhile, Python ends a daemon thread that
// wants the GIL back by unwinding it, which would end the process in std::terminate. Such a thread waits here for the
// process's end instead, as it does from Python 3.14 on.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// The caller's bytes, exported (so that they can neither move nor go away) as long as this lives.
class InputBytes {
 public:
  explicit InputBytes(const pybind11::object& source) {
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw pybind11::error_already_set();
  }
  ~InputBytes() { PyBuffer_Release(&view_); }
  InputBytes(const InputBytes&) = delete;
  InputBytes& operator=(const InputBytes&) = delete;

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(view_.buf); }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// An array over samples that go back to the buffer pool with it.
pybind11::object array_over(Pixels pixels);

// Adds what makes the classifier's inputs.
void register_prepare(pybind11::module_& module, const ErrorClasses& errors);

}  // namespace afd
