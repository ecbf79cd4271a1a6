// The driver's functions that distcxr's own kernels are loaded and launched with. These kernels do run: on the CPU, as
// compiled for it into the library that NULLCUDA_KERNELS names, when their turn in the stream comes.

#include "null_cuda.h"

#include <cuda.h>
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstdlib>

using namespace null_cuda;

namespace {

constexpr size_t NUM_ARGUMENTS = 5;  // of every kernel of distcxr, 64 bits each; the driver is not given their number
constexpr size_t ROOM_FOR_ARGUMENTS = 8;  // what launch_on_host reads
constexpr size_t MESSAGE_BYTES = 500;
using Arguments = std::array<unsigned long long, ROOM_FOR_ARGUMENTS>;
using LaunchOnHost = void (*)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                              const unsigned long long* arguments, int descending, char* message, size_t message_bytes);

void* host_kernels() {
    const char* path = std::getenv("NULLCUDA_KERNELS");
    static void* library = path != nullptr ? dlopen(path, RTLD_NOW) : nullptr;
    return library;
}

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device) + 1); }

int device_of(CUcontext context) { return static_cast<int>(reinterpret_cast<uintptr_t>(context)) - 1; }

// Contexts that a thread has pushed: the devices that were current before.
thread_local std::deque<int> outer_devices;

void run_on_host(void* kernel, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                 const Arguments& arguments) {
    static const auto launch = reinterpret_cast<LaunchOnHost>(dlsym(host_kernels(), "launch_on_host"));
    char message[MESSAGE_BYTES] = "";
    launch(kernel, grid_x, grid_y, threads, shared_bytes, arguments.data(), 0, message, sizeof message);
    if (message[0] == '\0') return;
    std::fprintf(stderr, "null CUDA: a kernel of ours failed: %s\n", message);
    std::abort();
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int* version) {
    cudaDriverGetVersion(version);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* number) {
    *number = num_devices();
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* is_active) {
    *flags = 0;
    *is_active = is_counted(DEVICE_CATEGORY + std::to_string(device)) ? 1 : 0;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    touch("cuDevicePrimaryCtxRetain", device);
    *context = context_of(device);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = context_of(current_device());
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    outer_devices.push_back(current_device());
    make_current(device_of(context));
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    *context = context_of(current_device());
    make_current(outer_devices.back());
    outer_devices.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void*) {
    *module = static_cast<CUmodule>(host_kernels());
    return host_kernels() != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    *function = static_cast<CUfunction>(dlsym(module, name));
    return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuLaunchKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned, unsigned threads, unsigned,
                        unsigned, unsigned shared_bytes, CUstream stream_handle, void** parameters, void**) {
    Locked locked;
    count_launch("a kernel of distcxr");
    Arguments arguments{};
    for (size_t place = 0; place < NUM_ARGUMENTS; ++place) {
        arguments[place] = *static_cast<unsigned long long*>(parameters[place]);
    }
    enqueue(stream_of(stream_handle), [=] { run_on_host(kernel, grid_x, grid_y, threads, shared_bytes, arguments); });
    return CUDA_SUCCESS;
}

// NVRTC, which is the real one, looks here for a cache of compiled kernels; where the function is missing it crashes.
CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_FOUND; }

// How cuda.bindings finds all the others.
CUresult cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* status) {
    const std::string newest = std::string(symbol) + "_v2";
    *function = dlsym(RTLD_DEFAULT, newest.c_str());
    if (*function == nullptr) *function = dlsym(RTLD_DEFAULT, symbol);
    const bool found = *function != nullptr;
    if (status != nullptr) *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return CUDA_SUCCESS;
}

}  // extern "C"
