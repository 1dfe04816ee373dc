// runtime._C: the only file that knows Python. Tensors arrive as addresses; kernels/*.py checks
// shapes and dtypes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "streamt1/frame_pack.h"
#include "streamt1/philox.h"
#include "streamt1/reward_patches.h"

namespace py = pybind11;

namespace {

// Raised whenever a signature or a meaning below changes; kernels/native.py wants the same number.
constexpr int kInterface = 2;

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
  if (sizes[1] > ((int64_t{1} << 31) - 1) / sizes[2])
    throw std::invalid_argument("shape: want fewer than 2^31 pixels a frame");
  return {sizes[0], sizes[1], sizes[2]};
}

streamt1::PackJob pack_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                           const std::array<int64_t, 3>& sizes, float lowest) {
  return {pointer<uint8_t>(out, "out"), pointer<const void>(frames, "frames"), pixel(dtype),
          frame_shape(sizes), streamt1::range_from(lowest)};
}

streamt1::PackJob rgb24_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                            const std::array<int64_t, 3>& sizes, float lowest) {
  const auto job = pack_job(out, frames, dtype, sizes, lowest);
  if (job.type == streamt1::Pixel::kUInt8)
    throw std::invalid_argument("dtype: uint8 is rgb24 already");
  return job;
}

streamt1::PackJob yuv420_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                             const std::array<int64_t, 3>& sizes, float lowest) {
  const auto job = pack_job(out, frames, dtype, sizes, lowest);
  if (job.shape.height % 2 || job.shape.width % 2)
    throw std::invalid_argument("shape: want an even height and width");
  return job;
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
           const std::array<int64_t, 3>& sizes, float lowest, int threads) {
  const auto job = rgb24_job(out, frames, dtype, sizes, lowest);
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::pack_rgb24(job, threads);
}

void yuv420(uintptr_t out, uintptr_t frames, const std::string& dtype,
            const std::array<int64_t, 3>& sizes, float lowest, int threads) {
  const auto job = yuv420_job(out, frames, dtype, sizes, lowest);
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::pack_yuv420(job, threads);
}

void rgb24_emulated(uintptr_t out, uintptr_t frames, const std::string& dtype,
                    const std::array<int64_t, 3>& sizes, float lowest) {
  streamt1::pack_rgb24_emulated(rgb24_job(out, frames, dtype, sizes, lowest));
}

void yuv420_emulated(uintptr_t out, uintptr_t frames, const std::string& dtype,
                     const std::array<int64_t, 3>& sizes, float lowest) {
  streamt1::pack_yuv420_emulated(yuv420_job(out, frames, dtype, sizes, lowest));
}

// Addresses of starts, weights and starts on the CPU; taps, size, resized.
using Axis = std::tuple<uintptr_t, uintptr_t, uintptr_t, int32_t, int32_t, int32_t>;

streamt1::ResizeAxis resize_axis(const Axis& axis) {
  const auto [starts, weights, host_starts, taps, size, resized] = axis;
  if (taps < 1 || size < taps || resized < 1 || resized % streamt1::kMergeSide)
    throw std::invalid_argument("axis: want taps from 1 to size and a multiple of 28 resized");
  return {pointer<const int32_t>(starts, "starts"),
          pointer<const int32_t>(weights, "weights"),
          pointer<const int32_t>(host_starts, "host_starts"),
          taps,
          size,
          resized};
}

streamt1::PatchJob patch_job(uintptr_t out, const std::string& out_dtype, uintptr_t frames,
                             const std::string& dtype, int64_t frame_stride, int64_t count,
                             bool video, float lowest, const Axis& rows, const Axis& columns,
                             const std::array<float, 3>& scale, const std::array<float, 3>& shift) {
  if (count < 1) throw std::invalid_argument("frames: want at least 1");
  const auto out_type = pixel(out_dtype);
  if (out_type == streamt1::Pixel::kUInt8) throw std::invalid_argument("out: want a float dtype");
  return {pointer<void>(out, "out"),
          out_type,
          pointer<const void>(frames, "frames"),
          pixel(dtype),
          frame_stride,
          count,
          video,
          streamt1::range_from(lowest),
          resize_axis(rows),
          resize_axis(columns),
          {scale[0], scale[1], scale[2]},
          {shift[0], shift[1], shift[2]}};
}

// Makes patch_job's function of Python's arguments, and of what `Extra` adds.
template <typename... Extra, typename Run>
auto with_patch_job(Run run) {
  return
      [run](uintptr_t out, const std::string& out_dtype, uintptr_t frames, const std::string& dtype,
            int64_t frame_stride, int64_t count, bool video, float lowest, const Axis& rows,
            const Axis& columns, const std::array<float, 3>& scale,
            const std::array<float, 3>& shift, Extra... extra) {
        const auto job = patch_job(out, out_dtype, frames, dtype, frame_stride, count, video,
                                   lowest, rows, columns, scale, shift);
        return run(job, extra...);
      };
}

void reward_patches(const streamt1::PatchJob& job, int threads) {
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::reward_patches(job, threads);
}

void fits_a_block(const streamt1::PatchJob& job) {
  if (streamt1::reward_patches_shared_bytes(job) == 0)
    throw std::invalid_argument(
        "impl='cuda' cannot hold a tile of frames that shrink so much; use impl='triton'");
}

void reward_patches_emulated(const streamt1::PatchJob& job) {
  fits_a_block(job);
  streamt1::reward_patches_emulated(job);
}

#ifdef STREAMT1_WITH_CUDA
void launched(const char* kernel, const char* failure) {
  if (failure) throw std::runtime_error(std::string(kernel) + ": the launch failed: " + failure);
}

void rgb24_cuda(uintptr_t out, uintptr_t frames, const std::string& dtype,
                const std::array<int64_t, 3>& sizes, float lowest, uintptr_t stream) {
  const auto job = rgb24_job(out, frames, dtype, sizes, lowest);
  launched("rgb24", streamt1::pack_rgb24_cuda(job, reinterpret_cast<void*>(stream)));
}

void yuv420_cuda(uintptr_t out, uintptr_t frames, const std::string& dtype,
                 const std::array<int64_t, 3>& sizes, float lowest, uintptr_t stream) {
  const auto job = yuv420_job(out, frames, dtype, sizes, lowest);
  launched("yuv420", streamt1::pack_yuv420_cuda(job, reinterpret_cast<void*>(stream)));
}

void reward_patches_cuda(const streamt1::PatchJob& job, uintptr_t stream) {
  fits_a_block(job);
  launched("reward_patches", streamt1::reward_patches_cuda(job, reinterpret_cast<void*>(stream)));
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
        py::arg("lowest"), py::arg("threads"));
  m.def("yuv420", &yuv420, py::arg("out"), py::arg("frames"), py::arg("dtype"), py::arg("shape"),
        py::arg("lowest"), py::arg("threads"));
  m.def("rgb24_emulated", &rgb24_emulated, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"));
  m.def("yuv420_emulated", &yuv420_emulated, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"));
  m.def("reward_patches", with_patch_job<int>(&reward_patches));
  m.def("reward_patches_emulated", with_patch_job<>(&reward_patches_emulated));
#ifdef STREAMT1_WITH_CUDA
  m.def("reward_patches_cuda", with_patch_job<uintptr_t>(&reward_patches_cuda));
  m.def("rgb24_cuda", &rgb24_cuda, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"), py::arg("stream"));
  m.def("yuv420_cuda", &yuv420_cuda, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"), py::arg("stream"));
#endif
}
