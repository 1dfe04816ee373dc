// runtime._C: the only file that knows Python. Tensors arrive as addresses; kernels/*.py checks
// shapes and dtypes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "streamt1/adaln.h"
#include "streamt1/arguments.h"
#include "streamt1/ema_merge.h"
#include "streamt1/frame_pack.h"
#include "streamt1/philox.h"
#include "streamt1/qk_norm_rope_store.h"
#include "streamt1/reward_patches.h"
#include "streamt1/slerp_noise.h"

namespace py = pybind11;

namespace {

using streamt1::at_least_one;
using streamt1::Axis;
using streamt1::float_type;
using streamt1::launched;
using streamt1::noise_rows;
using streamt1::patch_job;
using streamt1::pointer;
using streamt1::positive;
using streamt1::rgb24_job;
using streamt1::yuv420_job;

// Raised whenever a signature or a meaning below changes; kernels/native.py wants the same number.
constexpr int kInterface = 3;

void philox_normal(uintptr_t out, const std::string& dtype, uintptr_t streams,
                   const std::array<int64_t, 2>& sizes, int threads) {
  const auto rows = noise_rows(out, dtype, streams, {0, 0}, {sizes[0], 0, sizes[1]});
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::normal_noise(rows, threads);
}

void slerp_noise(uintptr_t out, const std::string& dtype, uintptr_t streams,
                 const std::array<uintptr_t, 2>& from, const std::array<int64_t, 3>& sizes,
                 double beta, bool slerp, int threads) {
  const auto rows = noise_rows(out, dtype, streams, from, sizes);
  pointer<const void>(from[0], "previous");
  positive(threads);
  const py::gil_scoped_release unlocked;
  slerp ? streamt1::slerp_noise(rows, beta, threads) : streamt1::blend_noise(rows, beta, threads);
}

void renoise(uintptr_t out, const std::string& dtype, uintptr_t streams, uintptr_t x0,
             uintptr_t sigma, const std::array<int64_t, 2>& sizes, int threads) {
  const auto rows = noise_rows(out, dtype, streams, {x0, 0}, {sizes[0], sizes[0], sizes[1]});
  pointer<const void>(x0, "x0");
  const auto* levels = pointer<const float>(sigma, "sigma");
  positive(threads);
  const py::gil_scoped_release unlocked;
  streamt1::renoise(rows, levels, threads);
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
  launched("ema_merge", streamt1::ema_merge_cuda(merge, reinterpret_cast<void*>(stream)));
}
#endif

// A launch but for its addresses: made once for all calls of one layout. What a call has not is 0.
class QKNormRopeStore {
 public:
  // Strides (batch, token) of q, k, v and of where they go; rows and columns of a frame; the batch
  // stride of the frames; sizes B, S, H, D.
  QKNormRopeStore(const std::array<int64_t, 12>& strides, const std::array<int64_t, 2>& patches,
                  int64_t frames_stride, const std::array<int64_t, 4>& sizes,
                  const std::string& dtype)
      : shape_{sizes[0], sizes[1], sizes[2], sizes[3]}, type_(float_type(dtype)) {
    at_least_one(sizes);
    at_least_one(patches);
    if (sizes[1] % (patches[0] * patches[1]))
      throw std::invalid_argument("patches: want rows * columns that divide the tokens");
    for (int i = 0; i < 3; ++i) {
      streams_[i].from = {nullptr, strides[2 * i], strides[2 * i + 1]};
      streams_[i].to = {nullptr, strides[6 + 2 * i], strides[7 + 2 * i]};
    }
    grid_ = {nullptr, nullptr, frames_stride, patches[0], patches[1]};
  }

  // Addresses of q, k, v, of where they go, of both weights, rates, frames and blocks.
  void operator()(const std::array<uintptr_t, 3>& from, const std::array<uintptr_t, 3>& to,
                  const std::array<uintptr_t, 2>& weights, uintptr_t rates, uintptr_t frames,
                  uintptr_t blocks, int threads) const {
    auto streams = streams_;
    auto grid = grid_;
    for (int i = 0; i < 3; ++i) {
      if (from[i] == 0) continue;
      streams[i].from.data = reinterpret_cast<const void*>(from[i]);
      streams[i].to.data = pointer<void>(to[i], "to");
      if (i < 2) streams[i].weight = pointer<const void>(weights[i], "weight");
      if (i > 0) streams[i].blocks = reinterpret_cast<const int32_t*>(blocks);
    }
    if (rates) {
      grid.rates = reinterpret_cast<const int64_t*>(rates);
      grid.frames = pointer<const int64_t>(frames, "frames");
    }
    positive(threads);
    const py::gil_scoped_release unlocked;
    streamt1::qk_norm_rope_store(streams[0], streams[1], streams[2], grid, shape_, type_, threads);
  }

 private:
  std::array<streamt1::NormedStream, 3> streams_;
  streamt1::TokenGrid grid_;
  streamt1::NormRopeShape shape_;
  streamt1::Float type_;
};

// A launch but for its addresses: made once for all calls of one layout.
class Adaln {
 public:
  // Strides of x and y (batch, token), gate, scale and shift (batch, frame); sizes B, F, P, E.
  Adaln(const std::array<int64_t, 10>& strides, const std::array<int64_t, 4>& sizes, bool one_plus,
        const std::string& dtype)
      : shape_{sizes[0], sizes[1], sizes[2], sizes[3]}, type_(float_type(dtype)) {
    at_least_one(sizes);
    job_.x = {nullptr, strides[0], strides[1]};
    job_.y = {nullptr, strides[2], strides[3]};
    job_.gate = {nullptr, strides[4], strides[5]};
    job_.scale = {nullptr, strides[6], strides[7]};
    job_.shift = {nullptr, strides[8], strides[9]};
    job_.one_plus = one_plus;
  }

  void operator()(uintptr_t x, uintptr_t y, uintptr_t gate, uintptr_t scale, uintptr_t shift,
                  uintptr_t total, uintptr_t out, int threads) const {
    if ((total != 0) != (y != 0)) throw std::invalid_argument("total: want an address with y's");
    if (out && (!scale || !shift)) throw std::invalid_argument("scale, shift: want addresses");
    streamt1::Adaln job = job_;
    job.x.data = pointer<const void>(x, "x");
    job.y.data = reinterpret_cast<const void*>(y);
    job.gate.data = reinterpret_cast<const void*>(gate);
    job.scale.data = reinterpret_cast<const void*>(scale);
    job.shift.data = reinterpret_cast<const void*>(shift);
    job.total = reinterpret_cast<void*>(total);
    job.out = reinterpret_cast<void*>(out);
    positive(threads);
    const py::gil_scoped_release unlocked;
    streamt1::adaln(job, shape_, type_, threads);
  }

 private:
  streamt1::Adaln job_;
  streamt1::AdalnShape shape_;
  streamt1::Float type_;
};

void rgb24_emulated(uintptr_t out, uintptr_t frames, const std::string& dtype,
                    const std::array<int64_t, 3>& sizes, float lowest) {
  streamt1::pack_rgb24_emulated(rgb24_job(out, frames, dtype, sizes, lowest));
}

void yuv420_emulated(uintptr_t out, uintptr_t frames, const std::string& dtype,
                     const std::array<int64_t, 3>& sizes, float lowest) {
  streamt1::pack_yuv420_emulated(yuv420_job(out, frames, dtype, sizes, lowest));
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

void reward_patches_emulated(const streamt1::PatchJob& job) {
  streamt1::fits_a_block(job);
  streamt1::reward_patches_emulated(job);
}

#ifdef STREAMT1_WITH_CUDA
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
  streamt1::fits_a_block(job);
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
  m.def("philox_normal", &philox_normal, py::arg("out"), py::arg("dtype"), py::arg("streams"),
        py::arg("sizes"), py::arg("threads"));
  m.def("slerp_noise", &slerp_noise, py::arg("out"), py::arg("dtype"), py::arg("streams"),
        py::arg("from"), py::arg("sizes"), py::arg("beta"), py::arg("slerp"), py::arg("threads"));
  m.def("renoise", &renoise, py::arg("out"), py::arg("dtype"), py::arg("streams"), py::arg("x0"),
        py::arg("sigma"), py::arg("sizes"), py::arg("threads"));
  py::class_<Adaln>(m, "Adaln")
      .def(py::init<const std::array<int64_t, 10>&, const std::array<int64_t, 4>&, bool,
                    const std::string&>(),
           py::arg("strides"), py::arg("shape"), py::arg("one_plus"), py::arg("dtype"))
      .def("__call__", &Adaln::operator());
  py::class_<QKNormRopeStore>(m, "QKNormRopeStore")
      .def(py::init<const std::array<int64_t, 12>&, const std::array<int64_t, 2>&, int64_t,
                    const std::array<int64_t, 4>&, const std::string&>(),
           py::arg("strides"), py::arg("patches"), py::arg("frames_stride"), py::arg("shape"),
           py::arg("dtype"))
      .def("__call__", &QKNormRopeStore::operator());
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
  py::class_<streamt1::EmaMerge>(m, "EmaMerge")
      .def(py::init(&streamt1::ema_merge_of), py::arg("addresses"), py::arg("strides"),
           py::arg("sizes"), py::arg("dtype"), py::arg("storage"), py::arg("alpha"), py::arg("cos"),
           py::arg("sin"), py::arg("bits"));
  m.def("ema_merge", &ema_merge, py::arg("merge"), py::arg("threads"));
  m.def("ema_merge_emulated", &ema_merge_emulated, py::arg("merge"));
#ifdef STREAMT1_WITH_CUDA
  m.def("ema_merge_cuda", &ema_merge_cuda, py::arg("merge"), py::arg("stream"));
  m.def("reward_patches_cuda", with_patch_job<uintptr_t>(&reward_patches_cuda));
  m.def("rgb24_cuda", &rgb24_cuda, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"), py::arg("stream"));
  m.def("yuv420_cuda", &yuv420_cuda, py::arg("out"), py::arg("frames"), py::arg("dtype"),
        py::arg("shape"), py::arg("lowest"), py::arg("stream"));
#endif
}
