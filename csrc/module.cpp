// Bindings only: argument checks, the GIL, and NumPy views whose capsule owns the memory.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "jpeg_reader.h"

namespace py = pybind11;

namespace {

using afd::Component;
using afd::Decoder;
using afd::ErrorKind;
using afd::Header;
using afd::JpegFailure;
using afd::Limits;
using afd::Picture;

// The classes of afd_serve.errors, looked up once.
struct ErrorClasses {
  py::object empty;
  py::object corrupt;
  py::object truncated;
  py::object unsupported;
  py::object too_large;

  static ErrorClasses load() {
    const py::module_ errors = py::module_::import("afd_serve.errors");
    return {errors.attr("EmptyInputError"), errors.attr("CorruptJpegError"), errors.attr("TruncatedJpegError"),
            errors.attr("UnsupportedJpegError"), errors.attr("JpegTooLargeError")};
  }

  const py::object& of(ErrorKind kind) const {
    switch (kind) {
      case ErrorKind::kEmpty:
        return empty;
      case ErrorKind::kTruncated:
        return truncated;
      case ErrorKind::kUnsupported:
        return unsupported;
      case ErrorKind::kTooLarge:
        return too_large;
      default:
        return corrupt;
    }
  }

  [[noreturn]] void raise(const JpegFailure& failure) const {
    if (failure.kind() == ErrorKind::kOutOfMemory) throw std::bad_alloc();
    PyErr_SetString(of(failure.kind()).ptr(), failure.what());
    throw py::error_already_set();
  }

  // The exception as an object.
  py::object made_of(const std::exception_ptr& failure) const {
    try {
      std::rethrow_exception(failure);
    } catch (const JpegFailure& caught) {
      if (caught.kind() != ErrorKind::kOutOfMemory) return of(caught.kind())(caught.what());
    } catch (const std::bad_alloc&) {
    }
    return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  }
};

// The caller's bytes, exported (so that they can neither move nor go away) as long as this lives.
class InputBytes {
 public:
  explicit InputBytes(const py::object& source) {
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~InputBytes() { PyBuffer_Release(&view_); }
  InputBytes(const InputBytes&) = delete;
  InputBytes& operator=(const InputBytes&) = delete;

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(view_.buf); }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

template <typename Owned>
py::capsule capsule_of(std::unique_ptr<Owned> owned) {
  py::capsule capsule(owned.get(), [](void* pointer) { delete static_cast<Owned*>(pointer); });
  owned.release();
  return capsule;
}

py::object quant_table_of(const Component& component) {
  if (!component.quant_table) return py::none();
  return py::array_t<std::uint16_t>({8, 8}, component.quant_table->data());
}

// What Python gets from one decode: arrays over the decoder's own memory.
struct DecodedJpeg {
  Header header;
  std::vector<py::array> coefficients;
  py::object pixels = py::none();
  std::vector<std::string> warnings;
  std::size_t warning_count;
  std::uintptr_t buffer_address;
  std::uint64_t buffer_bytes;
  int own_scans;
};

py::array view_of_plane(const afd::CoefficientArena& arena, std::size_t component, const py::capsule& owner) {
  const afd::PlaneShape& shape = arena.shape(component);
  constexpr py::ssize_t kRow = 8 * sizeof(JCOEF);
  constexpr py::ssize_t kBlock = 8 * kRow;
  const std::array<py::ssize_t, 4> extents{shape.height_in_blocks, shape.width_in_blocks, 8, 8};
  const std::array<py::ssize_t, 4> strides{kBlock * shape.padded_width_in_blocks, kBlock, kRow, sizeof(JCOEF)};
  return py::array_t<JCOEF>(extents, strides, arena.plane(component), owner);
}

py::array view_of_pixels(afd::Pixels pixels) {
  const std::array<py::ssize_t, 3> extents{pixels.height, pixels.width, 3};
  std::uint8_t* samples = pixels.samples.get();
  const py::capsule owner(samples, [](void* pointer) { afd::give_back_buffer(pointer); });
  pixels.samples.release();
  return py::array_t<std::uint8_t>(extents, samples, owner);
}

DecodedJpeg hand_over(Picture picture) {
  DecodedJpeg decoded;
  const afd::CoefficientArena& arena = *picture.coefficients;
  const py::capsule owner = capsule_of(std::move(picture.coefficients));
  for (std::size_t i = 0; i < arena.plane_count(); ++i) {
    decoded.coefficients.push_back(view_of_plane(arena, i, owner));
  }
  if (picture.pixels) decoded.pixels = view_of_pixels(std::move(*picture.pixels));
  decoded.header = std::move(picture.header);
  decoded.warnings = std::move(picture.warnings);
  decoded.warning_count = picture.warning_count;
  decoded.buffer_address = reinterpret_cast<std::uintptr_t>(arena.data());
  decoded.buffer_bytes = arena.size_bytes();
  decoded.own_scans = picture.own_scans;
  return decoded;
}

Header read_header(const ErrorClasses& errors, const py::object& source, const Limits& limits) {
  const InputBytes input(source);
  try {
    const py::gil_scoped_release unlocked;
    return afd::JpegReader(input.data(), input.size(), limits, true).header();
  } catch (const JpegFailure& failure) {
    errors.raise(failure);
  }
}

Decoder decoder_of(const std::string& name) {
  if (name == "fastest") return Decoder::kFastest;
  if (name == "portable") return Decoder::kPortable;
  if (name == "libjpeg") return Decoder::kLibjpeg;
  throw py::value_error("decoder is fastest, portable or libjpeg, not " + name);
}

afd::ReadOptions options_of(bool pixels, int scale, bool apply_orientation, const std::string& decoder) {
  if (scale < 1 || scale > 8) throw py::value_error("scale is a number of eighths, from 1 to 8");
  return {pixels, scale, apply_orientation, decoder_of(decoder)};
}

DecodedJpeg read(const ErrorClasses& errors, const py::object& source, const Limits& limits, bool tolerant,
                 const afd::ReadOptions& options) {
  const InputBytes input(source);
  Picture picture;
  try {
    const py::gil_scoped_release unlocked;
    picture = afd::JpegReader(input.data(), input.size(), limits, tolerant).read(options);
  } catch (const JpegFailure& failure) {
    errors.raise(failure);
  }
  return hand_over(std::move(picture));
}

// A DecodedJpeg or an exception for each source.
py::list read_batch(const ErrorClasses& errors, const std::vector<py::object>& sources, const Limits& limits,
                    bool tolerant, const afd::ReadOptions& options, std::size_t threads) {
  if (threads < 1) throw py::value_error("threads must be positive");
  std::deque<InputBytes> buffers;
  std::vector<afd::Input> inputs;
  for (const py::object& source : sources) {
    const InputBytes& buffer = buffers.emplace_back(source);
    inputs.push_back({buffer.data(), buffer.size()});
  }
  std::vector<afd::BatchItem> items;
  {
    const py::gil_scoped_release unlocked;
    items = afd::read_batch(inputs, limits, tolerant, options, threads);
  }
  py::list results;
  for (afd::BatchItem& item : items) {
    results.append(item.failure ? errors.made_of(item.failure) : py::cast(hand_over(std::move(item.picture))));
  }
  return results;
}

void register_types(py::module_& module) {
  py::class_<Limits>(module, "Limits")
      .def(py::init<std::uint64_t, std::uint64_t, std::uint32_t, std::uint64_t, double>(), py::kw_only(),
           py::arg("max_pixels"), py::arg("max_bytes"), py::arg("max_scans"), py::arg("max_memory_bytes"),
           py::arg("max_blocks_per_byte"));
  py::class_<Component>(module, "Component")
      .def_readonly("id", &Component::id)
      .def_readonly("h", &Component::h)
      .def_readonly("v", &Component::v)
      .def_readonly("width_in_blocks", &Component::width_in_blocks)
      .def_readonly("height_in_blocks", &Component::height_in_blocks)
      .def_property_readonly("quant_table", &quant_table_of);
  py::class_<Header>(module, "Header")
      .def_readonly("width", &Header::width)
      .def_readonly("height", &Header::height)
      .def_readonly("precision", &Header::precision)
      .def_readonly("color_space", &Header::color_space)
      .def_readonly("progressive", &Header::progressive)
      .def_readonly("arithmetic", &Header::arithmetic)
      .def_readonly("restart_interval", &Header::restart_interval)
      .def_readonly("orientation", &Header::orientation)
      .def_readonly("adobe_transform", &Header::adobe_transform)
      .def_readonly("components", &Header::components);
  py::class_<DecodedJpeg>(module, "DecodedJpeg")
      .def_readonly("header", &DecodedJpeg::header)
      .def_readonly("coefficients", &DecodedJpeg::coefficients)
      .def_readonly("pixels", &DecodedJpeg::pixels)
      .def_readonly("warnings", &DecodedJpeg::warnings)
      .def_readonly("warning_count", &DecodedJpeg::warning_count)
      .def_readonly("buffer_address", &DecodedJpeg::buffer_address)
      .def_readonly("buffer_bytes", &DecodedJpeg::buffer_bytes)
      .def_readonly("own_scans", &DecodedJpeg::own_scans);
}

}  // namespace

PYBIND11_MODULE(_jpeg, module) {
  module.doc() = "JPEG bytes to quantized DCT coefficients and pixels; afd_serve.jpeg is its public face.";
  register_types(module);
  const ErrorClasses errors = ErrorClasses::load();
  module.def(
      "read_header",
      [errors](const py::object& source, const Limits& limits) { return read_header(errors, source, limits); },
      py::arg("source"), py::arg("limits"));
  module.def(
      "read",
      [errors](const py::object& source, const Limits& limits, bool pixels, int scale, bool tolerant,
               bool apply_orientation, const std::string& decoder) {
        return read(errors, source, limits, tolerant, options_of(pixels, scale, apply_orientation, decoder));
      },
      py::arg("source"), py::arg("limits"), py::kw_only(), py::arg("pixels"), py::arg("scale"), py::arg("tolerant"),
      py::arg("apply_orientation"), py::arg("decoder") = "fastest");
  module.def(
      "read_batch",
      [errors](const std::vector<py::object>& sources, const Limits& limits, std::size_t threads, bool pixels,
               int scale, bool tolerant, bool apply_orientation, const std::string& decoder) {
        const afd::ReadOptions options = options_of(pixels, scale, apply_orientation, decoder);
        return read_batch(errors, sources, limits, tolerant, options, threads);
      },
      py::arg("sources"), py::arg("limits"), py::kw_only(), py::arg("threads"), py::arg("pixels"), py::arg("scale"),
      py::arg("tolerant"), py::arg("apply_orientation"), py::arg("decoder") = "fastest");
  module.attr("vector_decoder") = afd::has_vector_decoder();
  module.attr("codec") = "libjpeg-turbo " PYBIND11_TOSTRING(LIBJPEG_TURBO_VERSION);
  module.def("live_buffers", &afd::CoefficientArena::live_count);
}
