// runtime._C: the only file that knows Python. Tensors arrive as addresses; kernels/*.py checks
// shapes and dtypes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "streamt1/ema_merge.h"
#include "streamt1/frame_pack.h"
#include "streamt1/philox.h"

namespace py = pybind11;

namespace {

// Raised whenever a signature or a meaning below changes; kernels/native.py wants the same number.
constexpr int kInterface = 1;

template <typename T>
T* pointer(uintptr_t address, const char* name) {
  if (address == 0) throw std::invalid_argument(std::string(name) + ": want an address, got 0");
  return reinterpret_cast<T*>(address);
}

int positive(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: want at least 1");
  return threads;
}

streamt1::Pixel pixel(const std::string& name) {
  if (name == "float32") return streamt1::Pixel::kFloat32;
  if (name == "bfloat16") return streamt1::Pixel::kBFloat16;
  if (name == "float16") return streamt1::Pixel::kFloat16;
  if (name == "uint8") return streamt1::Pixel::kUInt8;
  throw std::invalid_argument("dtype: want float32, bfloat16, float16 or uint8, got " + name);
}

streamt1::FrameShape frame_shape(const std::array<int64_t, 3>& sizes) {
  for (const int64_t size : sizes)
    if (size < 1) throw std::invalid_argument("shape: want frames, height, width of at least 1");
  return {sizes[0], sizes[1], sizes[2]};
}

void philox_normal(uintptr_t out, int64_t elements, const streamt1::Words2& key,
                   const streamt1::Words3& counter, int threads) {
  if (elements < 1) throw std::invalid_argument("elements: want at least 1");
  auto* to = pointer<float>(out, "out");
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::philox_normal(to, elements, key, counter, threads);
}

void rgb24(uintptr_t out, uintptr_t frames, const std::string& dtype,
           const std::array<int64_t, 3>& sizes, int threads) {
  const auto type = pixel(dtype);
  if (type == streamt1::Pixel::kUInt8) throw std::invalid_argument("dtype: uint8 is rgb24 already");
  const auto shape = frame_shape(sizes);
  auto* to = pointer<uint8_t>(out, "out");
  const auto* from = pointer<const void>(frames, "frames");
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::pack_rgb24(to, from, type, shape, threads);
}

void yuv420(uintptr_t out, uintptr_t frames, const std::string& dtype,
            const std::array<int64_t, 3>& sizes, int threads) {
  const auto type = pixel(dtype);
  const auto shape = frame_shape(sizes);
  if (shape.height % 2 || shape.width % 2)
    throw std::invalid_argument("shape: want an even height and width");
  auto* to = pointer<uint8_t>(out, "out");
  const auto* from = pointer<const void>(frames, "frames");
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::pack_yuv420(to, from, type, shape, threads);
}

void ema_merge(const streamt1::EmaMerge& merge, int threads) {
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::ema_merge(merge, threads);
}

void ema_merge_emulated(const streamt1::EmaMerge& merge) {
  streamt1::check_vectors(merge);
  const py::gil_scoped_release unlocked;
  streamt1::ema_merge_emulated(merge);
}

#ifdef STREAMT1_WITH_CUDA
void ema_merge_cuda(const streamt1::EmaMerge& merge, uintptr_t stream) {
  streamt1::check_vectors(merge);
  const char* error = streamt1::ema_merge_cuda(merge, reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("ema_merge: ") + error);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels for the CPU. Call them through runtime.kernels, which checks what it passes.";
  m.attr("INTERFACE") = kInterface;
#ifdef _OPENMP
  m.attr("OPENMP") = true;
#else
  m.attr("OPENMP") = false;
#endif
#ifdef STREAMT1_WITH_CUDA
  m.attr("CUDA") = true;
#else
  m.attr("CUDA") = false;
#endif
  m.def("philox4x32_10", &streamt1::philox4x32_10, py::arg("counter"), py::arg("key"));
  m.def("philox_normal", &philox_normal, py::arg("out"), py::arg("elements"), py::arg("key"),
        py::arg("counter"), py::arg("threads"));
  m.def("rgb24", &rgb24, py::arg("out"), py::arg("frames"), py::arg("dtype"), py::arg("shape"),
        py::arg("threads"));
  m.def("yuv420", &yuv420, py::arg("out"), py::arg("frames"), py::arg("dtype"), py::arg("shape"),
        py::arg("threads"));
  py::class_<streamt1::EmaMerge>(m, "EmaMerge")
      .def(py::init(&streamt1::ema_merge_of), py::arg("addresses"), py::arg("strides"),
           py::arg("sizes"), py::arg("dtype"), py::arg("storage"), py::arg("alpha"), py::arg("cos"),
           py::arg("sin"), py::arg("bits"));
  m.def("ema_merge", &ema_merge, py::arg("merge"), py::arg("threads"));
  m.def("ema_merge_emulated", &ema_merge_emulated, py::arg("merge"));
#ifdef STREAMT1_WITH_CUDA
  m.def("ema_merge_cuda", &ema_merge_cuda, py::arg("merge"), py::arg("stream"));
#endif
}
