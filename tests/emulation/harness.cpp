// Runs convolutions of one kernel library: `harness PROBLEM RESULT [PROBLEM RESULT ...]`.
//
// Compiled behind a library's glue, by g++ with the emulation or by nvcc, or for the CPU's own kernels: every tensor
// then ends where no access is allowed, or with `reverse` begins there. A PROBLEM file holds a
// Header, then the input's storage, the weight and the bias; the RESULT file gets the launch's error
// as int64, then the output with `guard` elements on either side, filled with NaN before. With
// `gradient` the library is one of gradients: grad_output lies in the weight's place, no values in
// the bias's, and the RESULT gets the weight's gradient and, where `bias` is not 0, the bias's, both
// with guards. With `with_input` the weight follows, and the gradient of the input the others. Every tensor is
// an allocation of its own size, so that sanitizers see an access beyond it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "args.h"
#if defined(FASTCONV1D_CPU)
#include <sys/mman.h>

#include <functional>
#include <thread>

#include "parallel.h"
#else
#include "device.cuh"
#endif

namespace {

struct Header {
  int64_t variant, reverse, processor_shared_bytes, gradient, with_input;
  int64_t element_bytes, input_bytes;            // of an element, and of one of the input
  int64_t storage, offset, weight, bias, guard;  // elements
  fastconv1d::ConvArgs args;                     // its pointers are not used
};

// Memory that kernels see: on a GPU whole pieces of 16 bytes, which bulk copies read, as all of torch's
// allocators give them; on a CPU no byte more than there is.
int64_t whole(int64_t bytes) {
#if defined(FASTCONV1D_CPU)
  return bytes;
#else
  return (bytes + 15) / 16 * 16 + 16 * (bytes == 0);
#endif
}
#if defined(FASTCONV1D_CPU)
bool guard_before = false;
using Buffer = std::unique_ptr<char, std::function<void(char*)>>;

Buffer allocate(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  return {new char[bytes], [](char* pointer) { delete[] pointer; }};
#else
  constexpr int64_t page = 4096;
  const int64_t inside = (bytes + page - 1) / page * page, mapped = inside + 2 * page;
  void* const first =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (first == MAP_FAILED) std::abort();
  auto* const pages = static_cast<char*>(first);
  if (mprotect(pages, page, PROT_NONE) || mprotect(pages + page + inside, page, PROT_NONE))
    std::abort();
  std::memset(pages + page, 0xff, inside);
  return {pages + page + (guard_before ? 0 : inside - bytes),
          [pages, mapped](char*) { munmap(pages, mapped); }};
#endif
}
void copy(char* to, const char* from, int64_t bytes) { std::copy_n(from, bytes, to); }
int finish() { return 0; }

fastconv1d::Parallel parallel{[](int64_t workers, void (*body)(void*, int64_t), void* data) {
  std::vector<std::thread> threads;
  for (int64_t worker = 0; worker < workers; ++worker) threads.emplace_back(body, data, worker);
  for (std::thread& thread : threads) thread.join();
}};
#elif defined(FASTCONV1D_EMULATE)
struct Free {
  void operator()(char* pointer) const { std::free(pointer); }
};
using Buffer = std::unique_ptr<char, Free>;

Buffer allocate(int64_t bytes) {
  void* pointer = nullptr;
  if (posix_memalign(&pointer, 512, whole(bytes))) std::abort();
  std::memset(pointer, 0xff, bytes);
  return Buffer(static_cast<char*>(pointer));
}
void copy(char* to, const char* from, int64_t bytes) { std::copy_n(from, bytes, to); }
int finish() { return 0; }
#else
struct Free {
  void operator()(char* pointer) const { cudaFree(pointer); }
};
using Buffer = std::unique_ptr<char, Free>;

// Not filled, so that initcheck sees a workspace that is read before it is written.
Buffer allocate(int64_t bytes) {
  char* pointer = nullptr;
  if (cudaMalloc(&pointer, whole(bytes)) != cudaSuccess) std::abort();
  return Buffer(pointer);
}
void copy(char* to, const char* from, int64_t bytes) {
  cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
int finish() { return cudaDeviceSynchronize(); }
#endif

struct File {
  explicit File(const char* name, const char* how) : file(std::fopen(name, how)) {
    if (!file) std::perror(name), std::exit(2);
  }
  ~File() { std::fclose(file); }
  void read(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file) != bytes) std::perror("read"), std::exit(2);
  }
  void write(const void* from, size_t bytes) {
    if (std::fwrite(from, 1, bytes, file) != bytes) std::perror("write"), std::exit(2);
  }
  std::FILE* file;
};

// A tensor to be written, between guards, all of it NaN.
struct Output {
  Output(int64_t elements, int64_t guard, int64_t size)
      : bytes((elements + 2 * guard) * size, '\xff'), buffer(allocate(bytes.size())) {
    copy(buffer.get(), bytes.data(), bytes.size());
    data = buffer.get() + guard * size;
  }
  void save(File& file) {
    copy(bytes.data(), buffer.get(), bytes.size());
    file.write(bytes.data(), bytes.size());
  }
  std::vector<char> bytes;
  Buffer buffer;
  char* data;
};

void run(const char* problem_name, const char* result_name) {
  File problem(problem_name, "rb");
  Header header;
  problem.read(&header, sizeof header);
  void* stream = nullptr;
#if defined(FASTCONV1D_CPU)
  guard_before = header.reverse;
  stream = &parallel;
#elif defined(FASTCONV1D_EMULATE)
  fastconv1d::emulation::reverse = header.reverse;
  fastconv1d::emulation::processor_shared_bytes = header.processor_shared_bytes;
#endif
  const int64_t size = header.element_bytes;
  const auto read = [&](int64_t elements, int64_t size) {
    // A kernel may read the last piece as a whole.
    std::vector<char> bytes(whole(elements * size), '\xff');
    problem.read(bytes.data(), elements * size);
    Buffer buffer = allocate(elements * size);
    copy(buffer.get(), bytes.data(), bytes.size());
    return buffer;
  };
  const Buffer input = read(header.storage, header.input_bytes);
  const bool gradient = header.gradient, with_bias = header.bias, with_input = header.with_input;
  const Buffer weight = read(header.weight, size), bias = read(gradient ? 0 : header.bias, size);

  fastconv1d::ConvArgs args = header.args;
  const int64_t elements =
      gradient ? args.channels_out * (args.channels_in / args.groups) * args.kernel_size
               : args.batch * args.channels_out * args.length_out;
  const Buffer of_input = read(with_input ? elements : 0, size);
  Output output(elements, header.guard, size);
  Output grad_bias(gradient ? header.bias : 0, header.guard, size);
  Output grad_input(with_input ? args.batch * args.channels_in * args.length : 0, header.guard,
                    size);
  args.input = input.get() + header.offset * header.input_bytes;
  args.output = output.data;
  if (gradient) {
    args.grad_output = weight.get();
    args.grad_bias = with_bias ? grad_bias.data : nullptr;
    args.weight = with_input ? of_input.get() : nullptr;
    args.grad_input = with_input ? grad_input.data : nullptr;
  } else {
    args.weight = weight.get();
    args.bias = with_bias ? bias.get() : nullptr;
  }
  const int64_t workspace_bytes = fastconv1d_workspace(header.variant, &args);
  const Buffer workspace = allocate(workspace_bytes);
  args.workspace = workspace.get();
#if defined(FASTCONV1D_EMULATE)
  fastconv1d::emulation::written = workspace.get();
  fastconv1d::emulation::written_end = workspace.get() + workspace_bytes;
#endif

  int64_t error = fastconv1d_launch(header.variant, &args, stream);
  if (error == 0) error = finish();
  File result(result_name, "wb");
  result.write(&error, sizeof error);
  output.save(result);
  if (gradient && with_bias) grad_bias.save(result);
  if (with_input) grad_input.save(result);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) run(argv[i], argv[i + 1]);
}
