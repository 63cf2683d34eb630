// Bindings only: argument checks, the GIL, and NumPy views whose capsule owns the memory.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "bindings.h"
#include "jpeg_reader.h"

namespace py = pybind11;

namespace {

using afd::Component;
using afd::Decoder;
using afd::ErrorClasses;
using afd::Header;
using afd::InputBytes;
using afd::JpegFailure;
using afd::Limits;
using afd::Picture;

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

#ifdef __clang__
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

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

// A frozen dataclass with slots, made field by field: its own __init__ takes longer than the decode of a thumbnail.
class ResultType {
 public:
  // Fails at import if the class has other fields than `fields` says, in its order.
  ResultType(py::object type, const std::vector<std::string>& fields)
      : type_(std::move(type)), fields_(type_.attr("__slots__")) {
    if (fields_.cast<std::vector<std::string>>() != fields) throw py::type_error("a result has other fields");
  }

  template <std::size_t kCount>
  py::object make(const std::array<py::object, kCount>& values) const {
    auto* const type = reinterpret_cast<PyTypeObject*>(type_.ptr());
    auto result = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
    if (!result) throw py::error_already_set();
    for (std::size_t i = 0; i < kCount; ++i) {
      PyObject* const field = PyTuple_GET_ITEM(fields_.ptr(), static_cast<py::ssize_t>(i));
      if (PyObject_GenericSetAttr(result.ptr(), field, values[i].ptr()) != 0) throw py::error_already_set();
    }
    return result;
  }

 private:
  py::object type_;
  py::tuple fields_;
};

struct ResultTypes {
  ResultType image;
  ResultType component;
};

// Set once, when afd_serve.jpeg is imported; never destroyed, because the interpreter is gone by then.
const ResultTypes* result_types = nullptr;

void set_result_types(const py::object& image, const py::object& component) {
  result_types =
      new ResultTypes{ResultType(image, {"width", "height", "color_space", "components", "pixels", "orientation",
                                         "progressive", "arithmetic", "restart_interval", "warnings", "warning_count"}),
                      ResultType(component, {"component_id", "coefficients", "quant_table", "h", "v"})};
}

py::object image_of(const DecodedJpeg& decoded) {
  if (result_types == nullptr) throw py::type_error("import afd_serve.jpeg first");
  const Header& header = decoded.header;
  py::tuple components(header.components.size());
  for (std::size_t i = 0; i < header.components.size(); ++i) {
    const Component& component = header.components[i];
    components[i] =
        result_types->component.make<5>({py::int_(component.id), decoded.coefficients[i], quant_table_of(component),
                                         py::int_(component.h), py::int_(component.v)});
  }
  return result_types->image.make<11>(
      {py::int_(header.width), py::int_(header.height), py::str(header.color_space), components, decoded.pixels,
       py::int_(header.orientation), py::bool_(header.progressive), py::bool_(header.arithmetic),
       py::int_(header.restart_interval), py::tuple(py::cast(decoded.warnings)), py::int_(decoded.warning_count)});
}

// The caller's arrays that a picture is decoded into; None for memory of our own. Its views keep them alive.
class OutputArrays {
 public:
  OutputArrays(const py::object& coefficients, const py::object& pixels)
      : coefficients_(coefficients), pixels_(pixels) {
    set_memory(coefficients, "coefficients", "int16", memory_.coefficients, memory_.coefficient_count);
    set_memory(pixels, "pixels", "uint8", memory_.samples, memory_.sample_count);
  }

  const afd::Output& memory() const { return memory_; }
  const py::object& coefficients() const { return coefficients_; }
  const py::object& pixels() const { return pixels_; }

 private:
  template <typename Value>
  static void set_memory(const py::object& object, const char* name, const char* type, Value*& values,
                         std::size_t& count) {
    if (object.is_none()) return;
    const std::string what = std::string("an output's ") + name;
    if (!py::isinstance<py::array_t<Value, py::array::c_style>>(object)) {
      throw py::type_error(what + " must be a C-contiguous " + type + " array");
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (!array.writeable()) throw py::value_error(what + " must be writable");
    values = static_cast<Value*>(array.mutable_data());
    count = static_cast<std::size_t>(array.size());
    if (reinterpret_cast<std::uintptr_t>(values) % afd::Output::kAlignment != 0) {
      throw py::value_error(what + " must be aligned to " + std::to_string(afd::Output::kAlignment) + " bytes");
    }
  }

  py::object coefficients_;
  py::object pixels_;
  afd::Output memory_;
};

// Memory from one address up to another.
struct Range {
  Range(const void* data, std::size_t bytes) : start(reinterpret_cast<std::uintptr_t>(data)), end(start + bytes) {}

  std::uintptr_t start;
  std::uintptr_t end;
};

// In the order of their addresses.
std::vector<Range> ranges_of(const std::vector<OutputArrays>& outputs) {
  std::vector<Range> ranges;
  const auto add = [&ranges](const void* data, std::size_t bytes) {
    if (bytes > 0) ranges.emplace_back(data, bytes);
  };
  for (const OutputArrays& output : outputs) {
    add(output.memory().coefficients, output.memory().coefficient_count * sizeof(JCOEF));
    add(output.memory().samples, output.memory().sample_count);
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& one, const Range& other) { return one.start < other.start; });
  return ranges;
}

// Decoding into the same memory from two threads would be a race, and a source that is written over while it is read
// would be another file.
void check_disjoint(const std::vector<OutputArrays>& outputs, const std::vector<afd::Input>& inputs) {
  const std::vector<Range> ranges = ranges_of(outputs);
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].start < ranges[i - 1].end) throw py::value_error("outputs overlap");
  }
  for (const afd::Input& input : inputs) {
    if (input.size == 0) continue;
    const Range source(input.data, input.size);
    const auto first_behind =
        std::upper_bound(ranges.begin(), ranges.end(), source.start,
                         [](std::uintptr_t start, const Range& range) { return start < range.end; });
    if (first_behind != ranges.end() && first_behind->start < source.end) {
      throw py::value_error("an output overlaps a source");
    }
  }
}

py::array view_of_plane(const afd::CoefficientArena& arena, std::size_t component, const py::object& owner) {
  const afd::PlaneShape& shape = arena.shape(component);
  constexpr py::ssize_t kRow = 8 * sizeof(JCOEF);
  constexpr py::ssize_t kBlock = 8 * kRow;
  const std::array<py::ssize_t, 4> extents{shape.height_in_blocks, shape.width_in_blocks, 8, 8};
  const std::array<py::ssize_t, 4> strides{kBlock * shape.padded_width_in_blocks, kBlock, kRow, sizeof(JCOEF)};
  return py::array_t<JCOEF>(extents, strides, arena.plane(component), owner);
}

py::object view_of_pixels(afd::Pixels pixels, const OutputArrays& output) {
  if (output.memory().samples == nullptr) return afd::array_over(std::move(pixels));
  const std::array<py::ssize_t, 3> extents{pixels.height, pixels.width, 3};
  return py::array_t<std::uint8_t>(extents, pixels.samples.get(), output.pixels());
}

DecodedJpeg hand_over(Picture picture, const OutputArrays& output) {
  DecodedJpeg decoded;
  const afd::CoefficientArena& arena = *picture.coefficients;
  const bool is_ours = output.memory().coefficients == nullptr;
  const py::object owner = is_ours ? capsule_of(std::move(picture.coefficients)) : output.coefficients();
  for (std::size_t i = 0; i < arena.plane_count(); ++i) {
    decoded.coefficients.push_back(view_of_plane(arena, i, owner));
  }
  if (picture.pixels) decoded.pixels = view_of_pixels(std::move(*picture.pixels), output);
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
    const afd::WithoutGil unlocked;
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
                 afd::ReadOptions options, const OutputArrays& output) {
  const InputBytes input(source);
  check_disjoint({output}, {{input.data(), input.size()}});
  options.output = output.memory();
  Picture picture;
  try {
    const afd::WithoutGil unlocked;
    picture = afd::JpegReader(input.data(), input.size(), limits, tolerant).read(options);
  } catch (const JpegFailure& failure) {
    errors.raise(failure);
  }
  return hand_over(std::move(picture), output);
}

// Beside a busy thread of Python's it takes 5 ms to get the GIL, as long as many pictures do.
constexpr std::chrono::milliseconds kLookForSignals{50};

// Python handles signals, as that of Ctrl-C, in no other thread. Nor may another one ask for the GIL in between: once
// the interpreter ends, it would not get it.
bool is_main_thread() {
  const auto threading = py::module_::import("threading");
  return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
}

// A DecodedJpeg or an exception for each source. In the main thread a signal ends the batch between two pictures.
py::list read_batch(const ErrorClasses& errors, const std::vector<py::object>& sources, const Limits& limits,
                    bool tolerant, const afd::ReadOptions& options, std::size_t threads,
                    const std::vector<OutputArrays>& outputs) {
  if (threads < 1) throw py::value_error("threads must be positive");
  std::deque<InputBytes> buffers;
  std::vector<afd::Input> inputs;
  for (const py::object& source : sources) {
    const InputBytes& buffer = buffers.emplace_back(source);
    inputs.push_back({buffer.data(), buffer.size(), outputs[inputs.size()].memory()});
  }
  check_disjoint(outputs, inputs);
  std::vector<afd::BatchItem> items;
  const bool handles_signals = is_main_thread();
  bool interrupted = false;
  {
    const afd::WithoutGil unlocked;
    auto next_look = std::chrono::steady_clock::now() + kLookForSignals;
    items = afd::read_batch(inputs, limits, tolerant, options, threads, [handles_signals, &interrupted, &next_look] {
      if (!handles_signals || std::chrono::steady_clock::now() < next_look) return false;
      const py::gil_scoped_acquire locked;
      interrupted = PyErr_CheckSignals() != 0;
      next_look = std::chrono::steady_clock::now() + kLookForSignals;
      return interrupted;
    });
  }
  if (interrupted) throw py::error_already_set();
  py::list results;
  for (std::size_t i = 0; i < items.size(); ++i) {
    results.append(items[i].failure ? errors.made_of(items[i].failure)
                                    : py::cast(hand_over(std::move(items[i].picture), outputs[i])));
  }
  return results;
}

// Arrays for coefficients and pixels, or None.
using OutputPair = std::pair<py::object, py::object>;

// One for each source, if there are any.
std::vector<OutputArrays> outputs_for(std::size_t sources, const std::vector<OutputPair>& pairs) {
  if (!pairs.empty() && pairs.size() != sources) {
    throw py::value_error(std::to_string(pairs.size()) + " outputs for " + std::to_string(sources) + " sources");
  }
  if (pairs.empty()) return std::vector<OutputArrays>(sources, OutputArrays(py::none(), py::none()));
  std::vector<OutputArrays> outputs;
  for (const auto& [coefficients, pixels] : pairs) outputs.emplace_back(coefficients, pixels);
  return outputs;
}

void register_types(py::module_& module) {
  py::class_<Limits>(module, "Limits")
      .def(py::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t, double, std::uint64_t, std::uint64_t>(),
           py::kw_only(), py::arg("max_pixels"), py::arg("max_bytes"), py::arg("max_scans"),
           py::arg("max_memory_bytes"), py::arg("max_blocks_per_byte"), py::arg("max_scan_blocks"),
           py::arg("max_arithmetic_blocks"));
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
      .def_readonly("own_scans", &DecodedJpeg::own_scans)
      .def("image", &image_of);
}

}  // namespace

PYBIND11_MODULE(_jpeg, module) {
  module.doc() = "JPEG bytes to quantized DCT coefficients and pixels; afd_serve.jpeg is its public face.";
  register_types(module);
  const ErrorClasses errors = ErrorClasses::load();
  const OutputPair no_output{py::none(), py::none()};
  module.def(
      "read_header",
      [errors](const py::object& source, const Limits& limits) { return read_header(errors, source, limits); },
      py::arg("source"), py::arg("limits"));
  module.def(
      "read",
      [errors](const py::object& source, const Limits& limits, bool pixels, int scale, bool tolerant,
               bool apply_orientation, const std::string& decoder, const OutputPair& output) {
        const afd::ReadOptions options = options_of(pixels, scale, apply_orientation, decoder);
        return read(errors, source, limits, tolerant, options, OutputArrays(output.first, output.second));
      },
      py::arg("source"), py::arg("limits"), py::kw_only(), py::arg("pixels"), py::arg("scale"), py::arg("tolerant"),
      py::arg("apply_orientation"), py::arg("decoder") = "fastest", py::arg("output") = no_output);
  module.def(
      "read_batch",
      [errors](const std::vector<py::object>& sources, const Limits& limits, std::size_t threads, bool pixels,
               int scale, bool tolerant, bool apply_orientation, const std::string& decoder,
               const std::vector<OutputPair>& outputs) {
        const afd::ReadOptions options = options_of(pixels, scale, apply_orientation, decoder);
        return read_batch(errors, sources, limits, tolerant, options, threads, outputs_for(sources.size(), outputs));
      },
      py::arg("sources"), py::arg("limits"), py::kw_only(), py::arg("threads"), py::arg("pixels"), py::arg("scale"),
      py::arg("tolerant"), py::arg("apply_orientation"), py::arg("decoder") = "fastest",
      py::arg("outputs") = std::vector<OutputPair>());
  afd::register_prepare(module, errors);
  module.attr("vector_decoder") = afd::has_vector_decoder();
  module.attr("compiler") = kCompiler;
  module.attr("build_flags") = AFD_BUILD_FLAGS;
  module.attr("codec") = "libjpeg-turbo " PYBIND11_TOSTRING(LIBJPEG_TURBO_VERSION);
  module.def("set_result_types", &set_result_types, py::arg("image"), py::arg("component"));
  module.def("live_buffers", &afd::CoefficientArena::live_count);
}
