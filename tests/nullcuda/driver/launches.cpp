// Kernels of torch: known by name, counted, never run.

#include "null_cuda.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

using namespace null_cuda;

namespace {

constexpr size_t SYMBOL_BYTES = 64 << 10;  // more than any __device__ variable of torch takes

struct Configuration {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
};

// Of the launch that a thread is in the middle of.
thread_local std::vector<Configuration> configurations;

std::map<const void*, std::string>& names() {
    static auto* made = new std::map<const void*, std::string>;
    return *made;
}

cudaError_t launch(const void* kernel, cudaStream_t stream) {
    Locked locked;
    auto found = names().find(kernel);
    count_launch(found == names().end() ? "a kernel without a name" : found->second);
    if (stream_of(stream).device != current_device()) return failed(cudaErrorInvalidResourceHandle);
    return cudaSuccess;
}

}  // namespace

extern "C" {

// ---- what nvcc's code calls when a library with kernels is loaded, and where it launches one

void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host_function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    Locked locked;
    names()[host_function] = name;
}

void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
    configurations.push_back({grid, block, shared_bytes, static_cast<cudaStream_t>(stream)});
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
    const Configuration top = configurations.back();
    configurations.pop_back();
    *grid = top.grid;
    *block = top.block;
    *shared_bytes = top.shared_bytes;
    *static_cast<cudaStream_t*>(stream) = top.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch(kernel, stream);
}

// ---- the same for programs

cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch(kernel, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* kernel, void**) {
    return launch(kernel, configuration->stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = 90;
    attributes->binaryVersion = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* number, const void*, int, size_t, unsigned) {
    *number = 2;
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
    *address = std::calloc(1, SYMBOL_BYTES);
    return *address != nullptr ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

}  // extern "C"
