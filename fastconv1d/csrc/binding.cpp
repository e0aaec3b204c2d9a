// The operators' C++ kernels: look the problem's plan up, ask Python for it where it is new, run it.
// Built once with FASTCONV1D_CUDA and once without, for the CPU.
#include "python_call.h"  // first, for Python's own header

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution_backward_native.h>
#include <ATen/ops/convolution_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#ifdef FASTCONV1D_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "args.h"
#include "blocks.h"
#include "im2col_cpu.h"
#include "parallel.h"
#include "recorded.h"

namespace {

using at::Tensor;
using c10::IntArrayRef;
using MaybeTensor = std::optional<Tensor>;

#ifdef FASTCONV1D_CUDA
constexpr auto kKey = c10::DispatchKey::CUDA;
#define FASTCONV1D_NAME(name) name "_cuda"
#define FASTCONV1D_KEY CUDA
#define FASTCONV1D_AUTOGRAD_KEY AutogradCUDA
#else
constexpr auto kKey = c10::DispatchKey::CPU;
#define FASTCONV1D_NAME(name) name "_cpu"
#define FASTCONV1D_KEY CPU
#define FASTCONV1D_AUTOGRAD_KEY AutogradCPU
#endif

using Launch = int (*)(int64_t, const fastconv1d::ConvArgs*, void*);
using Workspace = int64_t (*)(int64_t, const fastconv1d::ConvArgs*);

enum Kind : int64_t { kAten = 0, kKernel = 1, kIm2col = 2 };

// A plan as `fastconv1d::_select` describes it, and how often it ran.
struct Entry {
  int64_t kind, plan;
  Launch launch;
  Workspace workspace;
  int64_t variant;
  // Of the library for the gradient of a bias, if the plan leaves that to others.
  Launch launch_bias = nullptr;
  Workspace workspace_bias = nullptr;
  bool one_pass = false;  // whether the weight's gradient brings the input's along
  std::atomic<int64_t> calls{0};
};

struct Key {
  std::array<int64_t, 18> numbers;
  std::string algorithm;
  bool operator==(const Key& other) const {
    return numbers == other.numbers && algorithm == other.algorithm;
  }
};

struct Hash {
  size_t operator()(const Key& key) const {
    size_t hash = std::hash<std::string>{}(key.algorithm);
    for (const int64_t n : key.numbers)
      hash = (hash ^ static_cast<size_t>(n)) * 0x9E3779B97F4A7C15ull;
    return hash ^ hash >> 32;
  }
};

// Grows with layers, hardly with lengths: batch and length count up to four significant bits, and
// rows' distance modulo 16 bytes, as in `Problem.bucketed`.
struct PlanCache {
  std::mutex mutex;
  std::unordered_map<Key, std::unique_ptr<Entry>, Hash> entries;
};
PlanCache& plan_cache() {
  static auto* const cache = new PlanCache;  // never destroyed: calls may outlive static objects
  return *cache;
}

int64_t bucket(int64_t n) {
  int64_t step = 1;
  while (n / step >= 16) step *= 2;
  return (n + step - 1) / step * step;
}

// Bytes, of 16 at most, by multiples of which rows lie apart once positions are neighbours.
int64_t row_alignment(const Tensor& input) {
  const bool contiguous = input.size(2) > 1 && input.stride(2) != 1;
  return std::gcd(int64_t{16}, (contiguous ? input.size(2) : input.stride(1)) *
                                   static_cast<int64_t>(input.element_size()));
}

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

#ifndef FASTCONV1D_CUDA
// Large outputs and workspaces lie in blocks of our own: see blocks.h.
struct BlockAllocator final : c10::Allocator {
  static fastconv1d::Blocks& blocks() {
    static auto* const all = new fastconv1d::Blocks;  // outputs may outlive static objects
    return *all;
  }
  static void release(void* block) { blocks().give(static_cast<fastconv1d::Block*>(block)); }
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kLarge = size_t{1} << 20;
    auto* const block = bytes < kLarge ? nullptr : blocks().take(bytes);
    if (block == nullptr) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    return {block->address, block, release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
};
#endif

// A contiguous tensor without values.
Tensor new_tensor(IntArrayRef sizes, const Tensor& like, c10::ScalarType dtype) {
#ifndef FASTCONV1D_CUDA
  static const bool ours = environment("FASTCONV1D_HUGE_PAGES") != "0";
  static BlockAllocator allocator;
  if (ours)
    return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                     dtype, c10::nullopt);
#endif
  return at::empty(sizes, like.options().dtype(dtype).memory_format(c10::nullopt));
}

#ifdef FASTCONV1D_CUDA
struct Device {
  int multiprocessors = 0, major = 0;
};
const Device& current_device() {
  static const auto devices = [] {
    std::vector<Device> all(c10::cuda::device_count());
    for (size_t i = 0; i < all.size(); ++i) {
      const int index = static_cast<int>(i);
      cudaDeviceGetAttribute(&all[i].multiprocessors, cudaDevAttrMultiProcessorCount, index);
      cudaDeviceGetAttribute(&all[i].major, cudaDevAttrComputeCapabilityMajor, index);
    }
    return all;
  }();
  return devices.at(c10::cuda::current_device());
}
#endif

// The mode, or -1 for a dtype that has no kernel of ours.
int64_t mode_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
#ifdef FASTCONV1D_CUDA
      if (at::globalContext().allowTF32CuDNN(at::Float32Op::CONV) && current_device().major >= 8)
        return fastconv1d::kTf32;
#endif
      return fastconv1d::kIeee;
    case c10::ScalarType::BFloat16:
      return fastconv1d::kBf16;
    case c10::ScalarType::Half:
      return fastconv1d::kFp16;
    case c10::ScalarType::Double:
      return fastconv1d::kFp64;
    default:
      return -1;
  }
}

constexpr const char* kModes[] = {"tf32", "ieee", "bf16", "fp16", "fp64"};

// What the operators take beside their tensors.
struct Geometry {
  IntArrayRef stride, padding, dilation;
  bool transposed;
  IntArrayRef output_padding;
  int64_t groups;
};

// Whether this is a 1-D convolution that a kernel could compute; all else, errors included, is ATen's.
bool is_ours(const Tensor& input, IntArrayRef weight, const Geometry& g) {
  if (input.dim() != 3 || weight.size() != 3 || input.numel() == 0) return false;
  for (const int64_t size : weight)
    if (size < 1) return false;
  for (const IntArrayRef& of_one : {g.stride, g.padding, g.dilation, g.output_padding})
    if (of_one.size() != 1) return false;
  if (g.stride[0] < 1 || g.padding[0] < 0 || g.dilation[0] < 1 || g.groups < 1 ||
      g.output_padding[0] < 0)
    return false;
  if (input.size(1) % g.groups != 0 || weight[0] % g.groups != 0) return false;
  if (input.size(1) != (g.transposed ? weight[0] : weight[1] * g.groups)) return false;
  return g.transposed ? g.output_padding[0] < std::max(g.stride[0], g.dilation[0])
                      : g.output_padding[0] == 0;
}

bool is_ours(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
             const Geometry& g) {
  if (!is_ours(input, weight.sizes(), g)) return false;
  if (weight.scalar_type() != input.scalar_type() || weight.device() != input.device())
    return false;
  if (bias && bias->defined()) {
    const int64_t channels_out = g.transposed ? weight.size(1) * g.groups : weight.size(0);
    if (bias->dim() != 1 || bias->size(0) != channels_out) return false;
    if (bias->scalar_type() != input.scalar_type() || bias->device() != input.device())
      return false;
  }
  return true;
}

fastconv1d::ConvArgs args_of(const Tensor& input, IntArrayRef weight, const Geometry& g,
                             int64_t mode) {
  fastconv1d::ConvArgs a{};
  a.batch = input.size(0);
  a.channels_in = input.size(1);
  a.length = input.size(2);
  a.channels_out = g.transposed ? weight[1] * g.groups : weight[0];
  a.kernel_size = weight[2];
  a.stride = g.stride[0];
  a.padding = g.padding[0];
  a.dilation = g.dilation[0];
  a.groups = g.groups;
  a.transposed = g.transposed;
  a.mode = mode;
  const int64_t reach = a.dilation * (a.kernel_size - 1) + 1;
  if (g.transposed)
    a.length_out = (a.length - 1) * a.stride - 2 * a.padding + reach + g.output_padding[0];
  else if (a.length + 2 * a.padding >= reach)
    a.length_out = (a.length + 2 * a.padding - reach) / a.stride + 1;
  return a;
}

// `gradient`: of the plan for the weight's gradient.
Entry& entry_of(const Tensor& input, IntArrayRef weight, bool bias, const fastconv1d::ConvArgs& a,
                int64_t output_padding, bool gradient, c10::string_view algorithm) {
  static const char* const kPlan = "FASTCONV1D_PLAN";
  static const char* const kStrict = "FASTCONV1D_STRICT";
  Key key{{bucket(a.batch), a.channels_in, a.channels_out, bucket(a.length), a.kernel_size,
           a.stride, a.padding, a.dilation, a.groups, a.transposed, output_padding, a.mode, bias,
           input.device().index(), 0, 0, gradient ? 0 : row_alignment(input), gradient},
          algorithm.empty() ? environment(kPlan) : std::string(algorithm)};
  key.numbers[14] = algorithm.empty();
  key.numbers[15] = static_cast<int64_t>(std::hash<std::string>{}(environment(kStrict)));
  PlanCache& cache = plan_cache();
  {
    const std::lock_guard<std::mutex> lock(cache.mutex);
    const auto found = cache.entries.find(key);
    if (found != cache.entries.end()) return *found->second;
  }
  static const auto select =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastconv1d::_select", "")
          .typed<std::vector<int64_t>(const Tensor&, IntArrayRef, bool, int64_t, int64_t, int64_t,
                                      bool, int64_t, int64_t, c10::string_view, bool,
                                      c10::string_view)>();
  const std::vector<int64_t> chosen =
      select.call(input, weight, bias, a.stride, a.padding, a.dilation, a.transposed != 0,
                  output_padding, a.groups, kModes[a.mode], gradient, algorithm);
  const size_t expected = gradient ? 8 : 5;
  TORCH_CHECK(chosen.size() == expected, "fastconv1d::_select returned ", chosen.size(),
              " numbers, expected ", expected);
  auto entry = std::make_unique<Entry>();
  entry->kind = chosen[0];
  entry->plan = chosen[1];
  entry->launch = reinterpret_cast<Launch>(chosen[2]);
  entry->workspace = reinterpret_cast<Workspace>(chosen[3]);
  entry->variant = chosen[4];
  if (gradient) {
    entry->launch_bias = reinterpret_cast<Launch>(chosen[5]);
    entry->workspace_bias = reinterpret_cast<Workspace>(chosen[6]);
    entry->one_pass = chosen[7];
  }
  const std::lock_guard<std::mutex> lock(cache.mutex);
  return *cache.entries.emplace(std::move(key), std::move(entry)).first->second;
}

Tensor with_contiguous_positions(const Tensor& input) {
  return input.size(2) == 1 || input.stride(2) == 1 ? input : input.contiguous();
}

#ifdef FASTCONV1D_CUDA
void check_launch(int error, const char* what) {
  if (error != 0) (void)cudaGetLastError();  // or the next launch that anybody checks tells of it
  TORCH_CHECK(error == 0, "fastconv1d: ", what,
              " failed to launch: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}
#endif

// Bytes that the explicit algorithm's columns may take; more is done in chunks of the batch.
constexpr int64_t kColumnsBytes = int64_t{1} << 30;

// Columns of some samples, made of the input or summed up to the output by our kernel; on the CPU by
// `rows` of fp32 or fp64, from [begin, end) of `count` rows.
template <class Rows>
void run_columns(const Entry& entry, const fastconv1d::ConvArgs& a, int64_t count,
                 const Rows& rows) {
#ifdef FASTCONV1D_CUDA
  check_launch(entry.launch(entry.variant, &a, c10::cuda::getCurrentCUDAStream().stream()),
               "im2col");
#else
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    if (a.mode == fastconv1d::kFp64) return rows(double{}, begin, end);
    rows(float{}, begin, end);
  });
#endif
}

// The explicit algorithm: columns by our kernel, then one matrix product per group into the output,
// chunk by chunk over the batch; the weight is read as it is, never copied per sample.
void run_im2col(const Entry& entry, fastconv1d::ConvArgs a, const Tensor& input,
                const Tensor& weight, const Tensor& bias, Tensor& output) {
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
  const int64_t depth = channels_in * a.kernel_size;
  const int64_t sample = a.channels_in * a.kernel_size * a.length_out * input.element_size();
  const int64_t chunk = std::clamp<int64_t>(kColumnsBytes / sample, 1, a.batch);
  const Tensor columns = at::empty({chunk, a.groups, depth, a.length_out},
                                   input.options().memory_format(c10::nullopt));
  const Tensor matrices = weight.view({a.groups, channels_out, depth});
  const Tensor outputs = output.view({a.batch, a.groups, channels_out, a.length_out});
  const auto* const bytes = static_cast<const char*>(a.input);
  for (int64_t first = 0; first < outputs.size(0); first += chunk) {
    a.batch = std::min(chunk, outputs.size(0) - first);
    a.input = bytes + first * a.input_batch_stride * input.element_size();
    a.output = columns.data_ptr();
    run_columns(entry, a, a.batch * a.channels_in * a.kernel_size,
                [&](auto element, int64_t begin, int64_t end) {
                  fastconv1d::im2col_rows<decltype(element)>(a, begin, end);
                });
    for (int64_t group = 0; group < a.groups; ++group) {
      Tensor out = outputs.narrow(0, first, a.batch).select(1, group);
      const Tensor matrix = matrices[group].expand({a.batch, channels_out, depth});
      const Tensor column = columns.narrow(0, 0, a.batch).select(1, group);
      const Tensor added =
          bias.defined() ? bias.view({a.groups, channels_out, 1})[group] : Tensor();
#ifdef FASTCONV1D_CUDA
      // cuBLAS rounds some products to a 16-bit type before it adds; here they are rounded once.
      if (bias.defined() && input.element_size() == 2) {
        at::add_out(out, at::bmm(matrix, column, at::kFloat), added);
        continue;
      }
#endif
      if (bias.defined()) out.copy_(added.expand_as(out));
      at::baddbmm_out(out, out, matrix, column, bias.defined() ? 1 : 0);
    }
  }
}

// Its transpose: one matrix product per group from the input to columns, which our kernel sums up,
// with the bias, to the output. Columns of 16-bit types are fp32, so that results are rounded once.
void run_col2im(const Entry& entry, fastconv1d::ConvArgs a, const Tensor& input,
                const Tensor& weight, Tensor& output) {
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
  const int64_t height = channels_out * a.kernel_size;
  const bool widened = input.element_size() == 2;
  const auto options = input.options().memory_format(c10::nullopt);
  const int64_t sample = a.channels_out * a.kernel_size * a.length;
  const int64_t chunk = std::clamp<int64_t>(
      kColumnsBytes / (sample * (widened ? 4 : input.element_size())), 1, a.batch);
  const Tensor columns =
      at::empty({chunk, a.groups, height, a.length}, widened ? options.dtype(at::kFloat) : options);
  const Tensor matrices = weight.view({a.groups, channels_in, height}).transpose(1, 2);
  a.input = columns.data_ptr();
  a.input_batch_stride = sample;
  a.input_channel_stride = a.length;
  auto* const bytes = static_cast<char*>(a.output);
  for (int64_t first = 0; first < input.size(0); first += chunk) {
    a.batch = std::min(chunk, input.size(0) - first);
    a.output = bytes + first * a.channels_out * a.length_out * input.element_size();
    for (int64_t group = 0; group < a.groups; ++group) {
      Tensor column = columns.narrow(0, 0, a.batch).select(1, group);
      const Tensor matrix = matrices[group].expand({a.batch, height, channels_in});
      const Tensor values =
          input.narrow(0, first, a.batch).narrow(1, group * channels_in, channels_in);
      if (widened)
        at::bmm_out(column, matrix, values, at::kFloat);
      else
        at::bmm_out(column, matrix, values);
    }
    run_columns(entry, a, a.batch * a.channels_out, [&](auto element, int64_t begin, int64_t end) {
      fastconv1d::col2im_rows<decltype(element)>(a, begin, end);
    });
  }
}

void check_dtype(int64_t mode, const Tensor& input, c10::string_view algorithm) {
  TORCH_CHECK(mode >= 0 || algorithm.empty() || algorithm == "aten", "algorithm '", algorithm,
              "' cannot run this: input is ", input.scalar_type(),
              ", expected Float, Double, Half or BFloat16");
}

#ifdef FASTCONV1D_CUDA
// A stream beside the current one, for kernels that need nothing of what comes next there: they begin with all that has
// been enqueued so far, and what comes after `Beside` is gone begins with their end. Tensors are allocated on the current
// stream as ever; those that such kernels alone use have to be kept until then, or the allocator gives them to the next:
// a workspace of no more than so many bytes, since memory at a step's peak counts as well.
class Beside {
 public:
  static constexpr int64_t most_workspace = 32 << 20;
  Beside() = default;
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;
  ~Beside() {
    if (forked_ == nullptr) return;
    const auto current = c10::cuda::getCurrentCUDAStream().stream();
    if (cudaEventRecord(forked_->end, forked_->stream) != cudaSuccess ||
        cudaStreamWaitEvent(current, forked_->end, 0) != cudaSuccess)
      (void)cudaStreamSynchronize(forked_->stream);
  }

  // The stream beside, or the current one while a graph is captured: who takes part in that is not free until it ends.
  cudaStream_t fork() {
    const auto current = c10::cuda::getCurrentCUDAStream().stream();
    auto capture = cudaStreamCaptureStatusNone;
    C10_CUDA_CHECK(cudaStreamIsCapturing(current, &capture));
    if (capture != cudaStreamCaptureStatusNone) return current;
    Stream& own = stream_of_thread();
    C10_CUDA_CHECK(cudaEventRecord(own.begin, current));
    C10_CUDA_CHECK(cudaStreamWaitEvent(own.stream, own.begin, 0));
    forked_ = &own;
    return own.stream;
  }
  void keep(const Tensor& tensor) {
    if (forked_ != nullptr) kept_.push_back(tensor);
  }

 private:
  struct Stream {
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    Stream() = default;
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() {
      if (stream != nullptr) (void)cudaStreamDestroy(stream);
      for (cudaEvent_t event : {begin, end})
        if (event != nullptr) (void)cudaEventDestroy(event);
    }
  };
  // Nobody else knows it: those of torch's pool may be capturing somebody's graph.
  static Stream& stream_of_thread() {
    static thread_local std::unordered_map<int, Stream> streams;
    Stream& own = streams[c10::cuda::current_device()];
    if (own.stream == nullptr)
      C10_CUDA_CHECK(cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking));
    for (cudaEvent_t* event : {&own.begin, &own.end})
      if (*event == nullptr)
        C10_CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return own;
  }
  Stream* forked_ = nullptr;
  std::vector<Tensor> kept_;
};
#else
struct Beside {};  // threads share what there is
#endif

// Runs a library's kernels; the workspace that they ask for lives as long as they do, in stream order.
void run_kernels(Launch launch, Workspace workspace_of, int64_t variant, fastconv1d::ConvArgs& a,
                 const Tensor& input, [[maybe_unused]] Beside* beside = nullptr) {
#ifdef FASTCONV1D_CUDA
  a.multiprocessors = current_device().multiprocessors;
  Tensor workspace;
  if (const int64_t bytes = workspace_of(variant, &a); bytes > 0) {
    workspace = new_tensor({bytes}, input, c10::kByte);
    a.workspace = workspace.data_ptr();
    if (bytes > Beside::most_workspace) beside = nullptr;
  }
  const auto stream =
      beside != nullptr ? beside->fork() : c10::cuda::getCurrentCUDAStream().stream();
  if (beside != nullptr) beside->keep(workspace);
  check_launch(launch(variant, &a, stream), "a kernel");
#else
  a.multiprocessors = at::get_num_threads();
  const Tensor workspace = new_tensor({workspace_of(variant, &a)}, input, c10::kByte);
  a.workspace = workspace.data_ptr();
  fastconv1d::Parallel parallel{[](int64_t workers, void (*body)(void*, int64_t), void* data) {
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(data, worker);
    });
  }};
  launch(variant, &a, &parallel);
#endif
}
void run_kernels(const Entry& entry, fastconv1d::ConvArgs& a, const Tensor& input,
                 Beside* beside = nullptr) {
  run_kernels(entry.launch, entry.workspace, entry.variant, a, input, beside);
}

// Kernels copy rows of a weight as it lies, from multiples of 16 bytes; a part of some storage may begin elsewhere.
Tensor with_aligned_start(const Tensor& weight) {
  const bool aligned = reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0;
  return aligned || !weight.is_cuda() ? weight : weight.clone();
}

Tensor convolution(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                   const Geometry& g, c10::string_view algorithm) {
  const auto aten = [&] {
    return at::native::convolution(input, weight, bias, g.stride, g.padding, g.dilation,
                                   g.transposed, g.output_padding, g.groups);
  };
  if (!is_ours(input, weight, bias, g)) return aten();
#ifdef FASTCONV1D_CUDA
  const c10::cuda::CUDAGuard guard(input.device());
#endif
  const int64_t mode = mode_of(input.scalar_type());
  check_dtype(mode, input, algorithm);
  if (mode < 0) return aten();
  fastconv1d::ConvArgs a = args_of(input, weight.sizes(), g, mode);
  if (a.length_out < 1) return aten();
  const bool has_bias = bias && bias->defined();
  Entry& entry =
      entry_of(input, weight.sizes(), has_bias, a, g.output_padding[0], false, algorithm);
  entry.calls.fetch_add(1, std::memory_order_relaxed);
  if (entry.kind == kAten) return aten();

  const Tensor x = with_contiguous_positions(input), w = with_aligned_start(weight.contiguous());
  const Tensor b = has_bias ? bias->contiguous() : Tensor();
  Tensor output = new_tensor({a.batch, a.channels_out, a.length_out}, input, input.scalar_type());
  a.input = x.const_data_ptr();
  a.weight = w.const_data_ptr();
  a.bias = has_bias ? b.const_data_ptr() : nullptr;
  a.output = output.data_ptr();
  a.input_batch_stride = x.stride(0);
  a.input_channel_stride = x.stride(1);
  if (entry.kind == kIm2col) {
    if (g.transposed)
      run_col2im(entry, a, x, w, output);
    else
      run_im2col(entry, a, x, w, b, output);
    return output;
  }
  run_kernels(entry, a, input);
  return output;
}

// The gradient of a bias alone. On the CPU at::sum rounds sums of 16-bit types on their way.
Tensor sum_of_rows(const Tensor& grad_output) {
  const bool widened = !grad_output.is_cuda() && grad_output.element_size() == 2;
  const Tensor sum = at::sum(grad_output, IntArrayRef({0, 2}), false,
                             widened ? at::kFloat : grad_output.scalar_type());
  return widened ? sum.to(grad_output.scalar_type()) : sum;
}

// The same beside a plan that leaves it to others.
Tensor bias_gradient(const Entry& entry, const Tensor& grad_output, fastconv1d::ConvArgs a) {
  if (entry.launch_bias == nullptr) return sum_of_rows(grad_output);
  const Tensor grads = grad_output.contiguous();
  Tensor of_bias = new_tensor({a.channels_out}, grads, grads.scalar_type());
  a.grad_output = grads.const_data_ptr();
  a.grad_bias = of_bias.data_ptr();
  run_kernels(entry.launch_bias, entry.workspace_bias, a.mode, a, grads);
  return of_bias;
}

// The gradients of weight and bias; without `bias`, the latter has no elements. `values` are the weight, if it is
// at hand. Where the plan makes that of the input in the same pass, it goes to `of_input` unless that is null; else
// kernels run `beside` what comes next, unless that is null.
std::tuple<Tensor, Tensor> weight_gradient(const Tensor& grad_output, const Tensor& input,
                                           IntArrayRef weight, bool bias, const Geometry& g,
                                           c10::string_view algorithm,
                                           const Tensor& values = Tensor(),
                                           Tensor* of_input = nullptr, Beside* beside = nullptr) {
  const auto options = input.options().memory_format(c10::nullopt);
  const auto aten = [&](bool bias_too) -> std::tuple<Tensor, Tensor> {
    const int64_t channels_out = grad_output.size(1);
    auto [none, of_weight, of_bias] = at::native::convolution_backward(
        grad_output, input, values.defined() ? values : at::empty(weight, options),
        IntArrayRef(channels_out), g.stride, g.padding, g.dilation, g.transposed, g.output_padding,
        g.groups, {false, true, bias_too});
    return {of_weight.contiguous(), bias ? of_bias : at::empty({0}, options)};
  };
  if (!is_ours(input, weight, g)) return aten(bias);
#ifdef FASTCONV1D_CUDA
  const c10::cuda::CUDAGuard guard(input.device());
#endif
  const int64_t mode = mode_of(input.scalar_type());
  check_dtype(mode, input, algorithm);
  if (mode < 0) return aten(bias);
  fastconv1d::ConvArgs a = args_of(input, weight, g, mode);
  if (grad_output.scalar_type() != input.scalar_type() || grad_output.device() != input.device() ||
      a.length_out < 1 ||
      grad_output.sizes() != IntArrayRef({a.batch, a.channels_out, a.length_out}))
    return aten(bias);
  Entry& entry = entry_of(input, weight, bias, a, g.output_padding[0], true, algorithm);
  entry.calls.fetch_add(1, std::memory_order_relaxed);
  if (entry.kind == kAten) {
    const bool apart = entry.launch_bias != nullptr;
    auto [of_weight, of_bias] = aten(bias && !apart);
    return {of_weight, apart ? bias_gradient(entry, grad_output, a) : of_bias};
  }

  // Transposed, it is that of the ordinary convolution with the two tensors' parts swapped.
  const Tensor x = with_contiguous_positions(g.transposed ? grad_output : input);
  const Tensor grads = (g.transposed ? input : grad_output).contiguous();
  Tensor of_weight = at::empty(weight, options), of_bias;
  if (!bias)
    of_bias = at::empty({0}, options);
  else if (g.transposed)
    of_bias = bias_gradient(entry, grad_output, a);
  else
    of_bias = at::empty({a.channels_out}, options);
  if (g.transposed) {
    std::swap(a.channels_in, a.channels_out);
    std::swap(a.length, a.length_out);
    a.transposed = 0;
  } else if (bias) {
    a.grad_bias = of_bias.data_ptr();
  }
  a.input = x.const_data_ptr();
  a.grad_output = grads.const_data_ptr();
  a.output = of_weight.data_ptr();
  a.input_batch_stride = x.stride(0);
  a.input_channel_stride = x.stride(1);
  Tensor w;
  if (entry.one_pass && of_input != nullptr) {
    w = values.contiguous();
    *of_input = new_tensor(input.sizes(), input, input.scalar_type());
    a.weight = w.const_data_ptr();
    a.grad_input = of_input->data_ptr();
    beside = nullptr;
  }
  run_kernels(entry, a, input, beside);
#ifdef FASTCONV1D_CUDA
  if (beside != nullptr)
    for (const Tensor& tensor : {x, grads}) beside->keep(tensor);
#endif
  return {of_weight, of_bias};
}

// The output_padding of the other convolution with the same weight, which makes the gradient of an input of
// `length` positions of that of the output.
int64_t padding_of_other(const Tensor& grad_output, int64_t length, const Tensor& weight,
                         const Geometry& g) {
  if (g.transposed) return 0;
  const int64_t reach = g.dilation[0] * (weight.size(2) - 1) + 1;
  return length - ((grad_output.size(2) - 1) * g.stride[0] - 2 * g.padding[0] + reach);
}

// Whether ATen's plan is that of both gradients, of input and weight; then they are counted.
bool aten_runs_both(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool bias,
                    const Geometry& g, const Geometry& other, c10::string_view algorithm) {
  const int64_t mode = mode_of(input.scalar_type());
  const fastconv1d::ConvArgs of_input = args_of(grad_output, weight.sizes(), other, mode),
                             of_weight = args_of(input, weight.sizes(), g, mode);
  if (of_input.length_out < 1 || of_weight.length_out != grad_output.size(2)) return false;
  Entry& first = entry_of(grad_output, weight.sizes(), false, of_input, other.output_padding[0],
                          false, algorithm);
  if (first.kind != kAten) return false;
  Entry& second =
      entry_of(input, weight.sizes(), bias, of_weight, g.output_padding[0], true, algorithm);
  if (second.kind != kAten || second.launch_bias != nullptr) return false;
  for (Entry* const entry : {&first, &second}) entry->calls.fetch_add(1, std::memory_order_relaxed);
  return true;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of input, weight and bias

// Those that are `wanted`.
Gradients all_gradients(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                        at::OptionalIntArrayRef bias_sizes, const Geometry& g,
                        std::array<bool, 3> wanted, c10::string_view algorithm) {
  const auto aten = [&] {
    return at::native::convolution_backward(grad_output, input, weight, bias_sizes, g.stride,
                                            g.padding, g.dilation, g.transposed, g.output_padding,
                                            g.groups, wanted);
  };
  if (grad_output.dim() != 3 || grad_output.numel() == 0 ||
      grad_output.scalar_type() != input.scalar_type() || grad_output.device() != input.device() ||
      !is_ours(input, weight, std::nullopt, g) || mode_of(input.scalar_type()) < 0)
    return aten();
#ifdef FASTCONV1D_CUDA
  const c10::cuda::CUDAGuard guard(input.device());
#endif
  const int64_t output_padding = padding_of_other(grad_output, input.size(2), weight, g);
  const Geometry other{g.stride, g.padding, g.dilation, !g.transposed, IntArrayRef(output_padding),
                       g.groups};
  // One call shares what both need.
  if (wanted[0] && wanted[1] && is_ours(grad_output, weight, std::nullopt, other) &&
      aten_runs_both(grad_output, input, weight, wanted[2], g, other, algorithm))
    return aten();
  Tensor of_input, of_weight, of_bias;
  // Neither gradient needs the other: one's first and last blocks leave multiprocessors to the other's.
  Beside beside;
  // Of what is laid out otherwise, as a sum's gradient is, there is one copy for both.
  const Tensor grads =
      wanted[0] && wanted[1] && !g.transposed ? grad_output.contiguous() : grad_output;
  if (wanted[1])
    std::tie(of_weight, of_bias) =
        weight_gradient(grads, input, weight.sizes(), wanted[2], g, algorithm, weight,
                        wanted[0] ? &of_input : nullptr, wanted[0] ? &beside : nullptr);
  else if (wanted[2])
    of_bias = sum_of_rows(grad_output);
  if (wanted[0] && !of_input.defined()) {
    of_input = convolution(grads, weight, std::nullopt, other, algorithm);
    // There are more where output_padding is a stride or more.
    if (of_input.size(2) != input.size(2)) of_input = of_input.narrow(2, 0, input.size(2));
  }
  if (!wanted[2]) of_bias = Tensor();
  return {of_input, of_weight, of_bias};
}

// The operator: its output is contiguous whatever ATen returns, as its fake kernel promises.
Tensor contiguous_convolution(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                              IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                              bool transposed, IntArrayRef output_padding, int64_t groups,
                              c10::string_view algorithm) {
  // Not all that ATen would choose checks this.
  TORCH_CHECK(!bias || !bias->defined() || bias->scalar_type() == input.scalar_type(), "bias is ",
              bias->scalar_type(), ", expected input's dtype ", input.scalar_type());
  return convolution(input, weight, bias,
                     {stride, padding, dilation, transposed, output_padding, groups}, algorithm)
      .contiguous();
}

// Stands in for aten::convolution.
Tensor aten_convolution(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                        bool transposed, IntArrayRef output_padding, int64_t groups) {
  return convolution(input, weight, bias,
                     {stride, padding, dilation, transposed, output_padding, groups}, "");
}

std::tuple<Tensor, Tensor> grad_weight(const Tensor& grad_output, const Tensor& input,
                                       IntArrayRef weight_sizes, bool bias, IntArrayRef stride,
                                       IntArrayRef padding, IntArrayRef dilation, bool transposed,
                                       IntArrayRef output_padding, int64_t groups,
                                       c10::string_view algorithm) {
  return weight_gradient(grad_output, input, weight_sizes, bias,
                         {stride, padding, dilation, transposed, output_padding, groups},
                         algorithm);
}

Gradients convolution_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               at::OptionalIntArrayRef bias_sizes, IntArrayRef stride,
                               IntArrayRef padding, IntArrayRef dilation, bool transposed,
                               IntArrayRef output_padding, int64_t groups,
                               std::array<bool, 3> wanted, c10::string_view algorithm) {
  return all_gradients(grad_output, input, weight, bias_sizes,
                       {stride, padding, dilation, transposed, output_padding, groups}, wanted,
                       algorithm);
}

// Stands in for aten::convolution_backward.
Gradients aten_convolution_backward(const Tensor& grad_output, const Tensor& input,
                                    const Tensor& weight, at::OptionalIntArrayRef bias_sizes,
                                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                    bool transposed, IntArrayRef output_padding, int64_t groups,
                                    std::array<bool, 3> wanted) {
  return all_gradients(grad_output, input, weight, bias_sizes,
                       {stride, padding, dilation, transposed, output_padding, groups}, wanted, "");
}

bool has_tangent(const Tensor& t) { return t._fw_grad(0).defined(); }
bool needs_derivative(const Tensor& t) {
  return (c10::GradMode::is_enabled() && t.requires_grad()) || has_tangent(t);
}

// Skips the Python autograd kernel, and its cost, where nothing needs a derivative, or what autograd records is
// all that does.
Tensor autograd_convolution(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                            const MaybeTensor& bias, c10::SymIntArrayRef stride,
                            c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                            bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
                            c10::string_view algorithm) {
  static const auto differentiable =
      operator_of<ConvolutionOperator>("fastconv1d::_differentiable");
  const bool with_bias = bias && bias->defined();
  if (needs_derivative(input) || needs_derivative(weight) ||
      (with_bias && needs_derivative(*bias))) {
    const auto geometry =
        recorded_geometry(stride, padding, dilation, transposed, output_padding, groups);
    if (geometry && !has_tangent(input) && !has_tangent(weight) &&
        !(with_bias && has_tangent(*bias)))
      return RecordedConvolution::apply(input, weight, bias, *geometry, std::string(algorithm));
    return differentiable.call(input, weight, bias, stride, padding, dilation, transposed,
                               output_padding, groups, algorithm);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return convolution_operator().redispatch(keys & c10::after_autograd_keyset, input, weight, bias,
                                           stride, padding, dilation, transposed, output_padding,
                                           groups, algorithm);
}

// The same for the gradient of the weight.
std::tuple<Tensor, Tensor> autograd_grad_weight(
    c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
    c10::SymIntArrayRef weight_sizes, bool bias, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, c10::string_view algorithm) {
  static const auto differentiable =
      operator_of<GradWeightOperator>("fastconv1d::_differentiable_grad_weight");
  if (needs_derivative(grad_output) || needs_derivative(input))
    return differentiable.call(grad_output, input, weight_sizes, bias, stride, padding, dilation,
                               transposed, output_padding, groups, algorithm);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return grad_weight_operator().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                           weight_sizes, bias, stride, padding, dilation,
                                           transposed, output_padding, groups, algorithm);
}

// The same for all gradients of a convolution.
Gradients autograd_convolution_backward(c10::DispatchKeySet keys, const Tensor& grad_output,
                                        const Tensor& input, const Tensor& weight,
                                        at::OptionalSymIntArrayRef bias_sizes,
                                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                        c10::SymIntArrayRef dilation, bool transposed,
                                        c10::SymIntArrayRef output_padding, c10::SymInt groups,
                                        std::array<bool, 3> wanted, c10::string_view algorithm) {
  static const auto differentiable =
      operator_of<BackwardOperator>("fastconv1d::_differentiable_backward");
  if (needs_derivative(grad_output) || needs_derivative(input) || needs_derivative(weight))
    return differentiable.call(grad_output, input, weight, bias_sizes, stride, padding, dilation,
                               transposed, output_padding, groups, wanted, algorithm);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return backward_operator().redispatch(keys & c10::after_autograd_keyset, grad_output, input,
                                        weight, bias_sizes, stride, padding, dilation, transposed,
                                        output_padding, groups, wanted, algorithm);
}

std::vector<int64_t> calls() {
  std::unordered_map<int64_t, int64_t> of_plan;
  PlanCache& cache = plan_cache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  for (const auto& [key, entry] : cache.entries) of_plan[entry->plan] += entry->calls.load();
  std::vector<int64_t> flat;
  for (const auto& [plan, count] : of_plan) flat.insert(flat.end(), {plan, count});
  return flat;
}

void enable(bool on) {
  static std::mutex mutex;
  static std::unique_ptr<torch::Library> standing_in;
  const std::lock_guard<std::mutex> lock(mutex);
  if (on == (standing_in != nullptr)) return;
  if (!on) {
    standing_in.reset();
    return;
  }
  standing_in =
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
  standing_in->impl("convolution", TORCH_FN(aten_convolution));
  standing_in->impl("convolution_backward", TORCH_FN(aten_convolution_backward));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastconv1d, library) {
  library.def(FASTCONV1D_NAME("_calls") "() -> int[]", calls);
  library.def(FASTCONV1D_NAME("_enable") "(bool on) -> ()", enable);
}
TORCH_LIBRARY_IMPL(fastconv1d, FASTCONV1D_KEY, library) {
  library.impl("convolution", TORCH_FN(contiguous_convolution));
  library.impl("grad_weight", TORCH_FN(grad_weight));
  library.impl("convolution_backward", TORCH_FN(convolution_backward));
}
TORCH_LIBRARY_IMPL(fastconv1d, FASTCONV1D_AUTOGRAD_KEY, library) {
  library.impl("convolution", TORCH_FN(autograd_convolution));
  library.impl("grad_weight", TORCH_FN(autograd_grad_weight));
  library.impl("convolution_backward", TORCH_FN(autograd_convolution_backward));
}
