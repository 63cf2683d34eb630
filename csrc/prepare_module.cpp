// Bindings of what makes the classifier's inputs; see module.cpp.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "orientation.h"
#include "prepare.h"

namespace py = pybind11;

namespace afd {
namespace {

template <typename Value>
using Array = py::array_t<Value, py::array::c_style>;
using BoxTuple = std::tuple<double, double, double, double>;

Filter filter_of(const std::string& name) {
  if (name == "bicubic") return Filter::kBicubic;
  if (name == "bilinear") return Filter::kBilinear;
  throw py::value_error("interpolation is bicubic or bilinear, not " + name);
}

Instructions instructions_of(const std::string& name) {
  if (name == "fastest") return Instructions::kFastest;
  if (name == "avx2") return Instructions::kAvx2;
  if (name == "portable") return Instructions::kPortable;
  throw py::value_error("instructions are fastest, avx2 or portable, not " + name);
}

void check_size(std::uint32_t size) {
  if (size < 1 || size > 1 << 14) throw py::value_error("size must be in 1..16384");
}

void check_crop_fraction(double fraction) {
  if (!(fraction > 0.0 && fraction <= 1.0)) throw py::value_error("crop_fraction must be in (0, 1]");
}

void check_orientation(int orientation) {
  if (orientation < 1 || orientation > 8) throw py::value_error("orientation is in 1..8");
}

template <typename Value>
void check_shape(const Array<Value>& array, const std::vector<py::ssize_t>& expected, const char* message) {
  bool matches = array.ndim() == static_cast<py::ssize_t>(expected.size());
  for (std::size_t i = 0; matches && i < expected.size(); ++i) {
    matches = expected[i] < 0 || array.shape(static_cast<py::ssize_t>(i)) == expected[i];
  }
  if (!matches) throw py::value_error(message);
}

QuantTable table_of(const std::uint16_t* values) {
  QuantTable table;
  std::copy_n(values, table.size(), table.begin());
  return table;
}

QuantTable table_of(const Array<std::uint16_t>& array) {
  check_shape(array, {DCTSIZE, DCTSIZE}, "a quantization table has the shape [8, 8]");
  return table_of(array.data());
}

py::object array_over(Grid grid, std::uint32_t side) {
  std::int16_t* values = grid.get();
  const py::capsule owner(values, [](void* pointer) { give_back_buffer(pointer); });
  grid.release();
  const std::array<py::ssize_t, 3> extents{side, side, kCellCoefficients};
  return py::array_t<std::int16_t>(extents, values, owner);
}

py::object array_of(const ComponentTables& tables) {
  py::array_t<std::int32_t> array({kCellBlocks, std::size_t{DCTSIZE2}});
  std::int32_t* out = array.mutable_data();
  for (const QuantTable& table : tables) out = std::copy(table.begin(), table.end(), out);
  return array;
}

// What Python gets of the blocks of one picture.
struct Features {
  explicit Features(BlockFeatures features)
      : quality(features.history.quality),
        resaved(features.history.resaved),
        quant_tables(array_of(features.tables)),
        dequantized(array_over(std::move(features.blocks), features.side)) {}

  int quality;
  bool resaved;
  py::object quant_tables;
  py::object dequantized;
};

struct Prepared {
  py::object rgb;
  Features features;
  BoxTuple box;
  std::tuple<double, double> subsampling;
};

// Of chroma, across and down, as the upright picture has it.
std::tuple<double, double> subsampling_of(const Header& header) {
  if (header.components.size() < kCellBlocks) return {1.0, 1.0};
  const Component& luma = header.components[0];
  const Component& chroma = header.components[1];
  const double across = static_cast<double>(luma.h) / chroma.h;
  const double down = static_cast<double>(luma.v) / chroma.v;
  return Orientation(header.orientation).swaps_axes ? std::tuple(down, across) : std::tuple(across, down);
}

std::optional<Prepared> prepare_bytes(const ErrorClasses& errors, const py::object& source, const Limits& limits,
                                      const PrepareOptions& options) {
  const InputBytes input(source);
  std::optional<PreparedJpeg> prepared;
  try {
    const WithoutGil unlocked;
    prepared = prepare(input.data(), input.size(), limits, options);
  } catch (const JpegFailure& failure) {
    errors.raise(failure);
  }
  if (!prepared) return std::nullopt;
  const Box& box = prepared->box;
  return Prepared{array_over(std::move(prepared->rgb)), Features(std::move(prepared->features)),
                  BoxTuple(box.left, box.top, box.right, box.bottom), subsampling_of(prepared->header)};
}

void check_box(const Box& box, double width, double height) {
  const bool inside = box.left >= 0 && box.top >= 0 && box.right <= width && box.bottom <= height;
  if (!inside) throw py::value_error("the box must lie in the picture");
  if (!(box.left < box.right && box.top < box.bottom)) throw py::value_error("the box must not be empty");
}

py::object resample_array(const Array<std::uint8_t>& pixels, const BoxTuple& sides, std::uint32_t size, Filter filter,
                          int orientation, Instructions instructions) {
  check_shape(pixels, {-1, -1, 3}, "pixels have the shape [H, W, 3]");
  check_size(size);
  check_orientation(orientation);
  const auto height = static_cast<std::uint32_t>(pixels.shape(0));
  const auto width = static_cast<std::uint32_t>(pixels.shape(1));
  const Box box{std::get<0>(sides), std::get<1>(sides), std::get<2>(sides), std::get<3>(sides)};
  check_box(box, width, height);
  const PictureView view{pixels.data(), 0, 0, width, height};
  Pixels result;
  {
    const WithoutGil unlocked;
    result.width = result.height = size;
    result.samples = allocate_bytes(std::size_t{3} * size * size);
    resample(view, width, height, box, size, filter, result.samples.get(), instructions);
    if (orientation > 1) result = oriented(result, orientation);
  }
  return array_over(std::move(result));
}

Features features_of_array(const Array<std::int16_t>& blocks, const Array<std::uint16_t>& tables, int orientation) {
  check_shape(blocks, {-1, -1, kCellBlocks, DCTSIZE, DCTSIZE}, "blocks have the shape [G, G, 3, 8, 8]");
  check_shape(tables, {kCellBlocks, DCTSIZE, DCTSIZE}, "tables have the shape [3, 8, 8]");
  if (blocks.shape(0) != blocks.shape(1)) throw py::value_error("the grid must be square");
  check_orientation(orientation);
  const auto side = static_cast<std::uint32_t>(blocks.shape(0));
  ComponentTables own;
  for (std::size_t i = 0; i < own.size(); ++i) own[i] = table_of(tables.data() + i * DCTSIZE2);
  Grid stored = allocate_grid(side);
  std::memcpy(stored.get(), blocks.data(), static_cast<std::size_t>(blocks.nbytes()));
  return Features(features_of(std::move(stored), side, own, orientation));
}

py::object mean_magnitudes(const Array<std::int16_t>& grids) {
  check_shape(grids, {-1, -1, -1, kCellCoefficients}, "grids have the shape [N, G, G, 192]");
  const auto count = static_cast<std::size_t>(grids.shape(0));
  const auto cells = static_cast<std::size_t>(grids.shape(1) * grids.shape(2));
  if (cells == 0) throw py::value_error("the grids have no cells");
  py::array_t<float> means({count, kCellCoefficients});
  float* out = means.mutable_data();
  for (std::size_t i = 0; i < count; ++i) {
    for (const std::uint64_t sum : magnitude_sums(grids.data() + i * cells * kCellCoefficients, cells)) {
      *out++ = static_cast<float>(static_cast<double>(sum) / static_cast<double>(cells));
    }
  }
  return means;
}

LumaBlocks luma_of(const Array<std::int16_t>& blocks) {
  if (blocks.size() % DCTSIZE2 != 0) throw py::value_error("blocks have the shape [..., 8, 8]");
  return {blocks.data(), static_cast<std::size_t>(blocks.size()) / DCTSIZE2, DCTSIZE2};
}

std::optional<int> earlier_quality_of(const Array<std::int16_t>& blocks, const Array<std::uint16_t>& table,
                                      Instructions instructions) {
  const LumaBlocks luma = luma_of(blocks);
  const QuantTable own = table_of(table);
  const WithoutGil unlocked;
  return earlier_quality(luma, own, instructions);
}

py::object scaled_table_array(int quality, bool chroma) {
  if (quality < 1 || quality > 100) throw py::value_error("quality is in 1..100");
  return py::array_t<std::uint16_t>({DCTSIZE, DCTSIZE}, scaled_table(quality, chroma).data());
}

py::object array_of(const std::vector<std::uint32_t>& indices) {
  py::array_t<std::int64_t> array(static_cast<py::ssize_t>(indices.size()));
  std::copy(indices.begin(), indices.end(), array.mutable_data());
  return array;
}

// Rows of blocks and columns of blocks, int64 [G] each.
std::tuple<py::object, py::object> block_grid(const BoxTuple& box, std::uint32_t size, std::uint32_t width_in_blocks,
                                              std::uint32_t height_in_blocks, double block_width_px,
                                              double block_height_px, int orientation) {
  check_size(size);
  check_orientation(orientation);
  const auto [left, top, right, bottom] = box;
  const Orientation turn(orientation);
  return {array_of(blocks_under(top, bottom, size, height_in_blocks, block_height_px, turn.mirrors_y)),
          array_of(blocks_under(left, right, size, width_in_blocks, block_width_px, turn.mirrors_x))};
}

void register_types(py::module_& module) {
  py::class_<Features>(module, "BlockFeatures")
      .def_readonly("dequantized", &Features::dequantized)
      .def_readonly("quant_tables", &Features::quant_tables)
      .def_readonly("quality", &Features::quality)
      .def_readonly("resaved", &Features::resaved);
  py::class_<Prepared>(module, "PreparedJpeg")
      .def_readonly("rgb", &Prepared::rgb)
      .def_readonly("features", &Prepared::features)
      .def_readonly("box", &Prepared::box)
      .def_readonly("subsampling", &Prepared::subsampling);
}

void register_steps(py::module_& module) {
  module.def(
      "resample",
      [](const Array<std::uint8_t>& pixels, const BoxTuple& box, std::uint32_t size, const std::string& interpolation,
         int orientation, const std::string& instructions) {
        return resample_array(pixels, box, size, filter_of(interpolation), orientation, instructions_of(instructions));
      },
      py::arg("pixels"), py::arg("box"), py::arg("size"), py::arg("interpolation"), py::kw_only(),
      py::arg("orientation") = 1, py::arg("instructions") = "fastest");
  module.def("block_features", &features_of_array, py::arg("blocks"), py::arg("quant_tables"), py::arg("orientation"));
  module.def("mean_magnitudes", &mean_magnitudes, py::arg("dequantized"));
  module.def("block_grid", &block_grid, py::arg("box"), py::arg("size"), py::arg("width_in_blocks"),
             py::arg("height_in_blocks"), py::arg("block_width_px"), py::arg("block_height_px"),
             py::arg("orientation"));
  module.def(
      "crop_box",
      [](std::uint32_t width, std::uint32_t height, double crop_fraction, int orientation) {
        check_crop_fraction(crop_fraction);
        check_orientation(orientation);
        const Box box = crop_box(width, height, crop_fraction, orientation);
        const auto whole = [](double side) { return static_cast<std::int64_t>(side); };
        return std::tuple(whole(box.left), whole(box.top), whole(box.right), whole(box.bottom));
      },
      py::arg("width"), py::arg("height"), py::arg("crop_fraction"), py::arg("orientation"));
  module.def(
      "decoding_scale",
      [](const BoxTuple& box, std::uint32_t size) {
        return decoding_scale({std::get<0>(box), std::get<1>(box), std::get<2>(box), std::get<3>(box)}, size);
      },
      py::arg("box"), py::arg("size"));
}

void register_history(py::module_& module) {
  module.def("scaled_table", &scaled_table_array, py::arg("quality"), py::arg("chroma"));
  module.def(
      "estimate_quality", [](const Array<std::uint16_t>& table) { return estimate_quality(table_of(table)); },
      py::arg("quant_table"));
  module.def(
      "earlier_quality",
      [](const Array<std::int16_t>& dequantized, const Array<std::uint16_t>& table, const std::string& instructions) {
        return earlier_quality_of(dequantized, table, instructions_of(instructions));
      },
      py::arg("dequantized"), py::arg("quant_table"), py::kw_only(), py::arg("instructions") = "fastest");
}

}  // namespace

py::object array_over(Pixels pixels) {
  const std::array<py::ssize_t, 3> extents{pixels.height, pixels.width, 3};
  std::uint8_t* samples = pixels.samples.get();
  const py::capsule owner(samples, [](void* pointer) { give_back_buffer(pointer); });
  pixels.samples.release();
  return py::array_t<std::uint8_t>(extents, samples, owner);
}

void register_prepare(py::module_& module, const ErrorClasses& errors) {
  register_types(module);
  register_steps(module);
  register_history(module);
  module.def(
      "prepare",
      [errors](const py::object& source, const Limits& limits, std::uint32_t size, std::optional<double> crop_fraction,
               const std::string& interpolation, const std::string& instructions) {
        check_size(size);
        if (crop_fraction) check_crop_fraction(*crop_fraction);
        const PrepareOptions options{size, crop_fraction, filter_of(interpolation), instructions_of(instructions)};
        return prepare_bytes(errors, source, limits, options);
      },
      py::arg("source"), py::arg("limits"), py::kw_only(), py::arg("size"), py::arg("crop_fraction"),
      py::arg("interpolation"), py::arg("instructions") = "fastest");
}

}  // namespace afd
