// The devices that a program sees: H100s by their attributes, NULLCUDA_DEVICES of them (1 where it is not set).

#include "null_cuda.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace null_cuda {

namespace {

constexpr int CUDA_VERSION_SHOWN = 13000;

thread_local int current = 0;  // as in CUDA, a new thread begins on device 0
thread_local cudaError_t last_error = cudaSuccess;

cudaDeviceProp properties_of(int device) {
    cudaDeviceProp prop;
    std::memset(&prop, 0, sizeof prop);
    std::snprintf(prop.name, sizeof prop.name, "NULL H100");
    prop.major = 9;
    prop.minor = 0;
    prop.multiProcessorCount = 132;
    prop.warpSize = 32;
    prop.maxThreadsPerBlock = 1024;
    prop.maxThreadsPerMultiProcessor = 2048;
    prop.maxBlocksPerMultiProcessor = 32;
    prop.maxThreadsDim[0] = 1024;
    prop.maxThreadsDim[1] = 1024;
    prop.maxThreadsDim[2] = 64;
    prop.maxGridSize[0] = 2147483647;
    prop.maxGridSize[1] = 65535;
    prop.maxGridSize[2] = 65535;
    prop.sharedMemPerBlock = 48 << 10;
    prop.sharedMemPerBlockOptin = 227 << 10;
    prop.sharedMemPerMultiprocessor = 228 << 10;
    prop.regsPerBlock = 65536;
    prop.regsPerMultiprocessor = 65536;
    prop.totalConstMem = 65536;
    prop.textureAlignment = 512;
    prop.l2CacheSize = 50 << 20;
    prop.unifiedAddressing = 1;
    prop.concurrentKernels = 1;
    prop.cooperativeLaunch = 1;
    prop.pciBusID = device;
    prop.uuid.bytes[0] = static_cast<char>(device + 1);
    prop.totalGlobalMem = bytes_of_device();
    return prop;
}

}  // namespace

int num_devices() {
    static const char* asked = std::getenv("NULLCUDA_DEVICES");
    return asked != nullptr ? std::atoi(asked) : 1;
}

int current_device() { return current; }

void make_current(int device) { current = device; }

void touch(const char* call, int device) { count(DEVICE_CATEGORY + std::to_string(device), call); }

cudaError_t failed(cudaError_t error) {
    last_error = error;
    return error;
}

}  // namespace null_cuda

using namespace null_cuda;

extern "C" {

cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= num_devices()) return failed(cudaErrorInvalidDevice);
    make_current(device);
    touch("cudaSetDevice");
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* number) {
    *number = num_devices();
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDA_VERSION_SHOWN;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDA_VERSION_SHOWN;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device < 0 || device >= num_devices()) return failed(cudaErrorInvalidDevice);
    *properties = properties_of(device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    const cudaDeviceProp prop = properties_of(device);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = prop.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = prop.minor; break;
        case cudaDevAttrMultiProcessorCount: *value = prop.multiProcessorCount; break;
        case cudaDevAttrWarpSize: *value = prop.warpSize; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = prop.maxThreadsPerBlock; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = prop.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *value = prop.maxBlocksPerMultiProcessor; break;
        case cudaDevAttrMaxBlockDimX: *value = prop.maxThreadsDim[0]; break;
        case cudaDevAttrMaxBlockDimY: *value = prop.maxThreadsDim[1]; break;
        case cudaDevAttrMaxBlockDimZ: *value = prop.maxThreadsDim[2]; break;
        case cudaDevAttrMaxGridDimX: *value = prop.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY: *value = prop.maxGridSize[1]; break;
        case cudaDevAttrMaxGridDimZ: *value = prop.maxGridSize[2]; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(prop.sharedMemPerBlock); break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(prop.sharedMemPerBlockOptin); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = static_cast<int>(prop.sharedMemPerMultiprocessor);
            break;
        case cudaDevAttrMaxRegistersPerBlock: *value = prop.regsPerBlock; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
    std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device));
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "null CUDA's error"; }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "a stream or event of another device (null CUDA)";
        case cudaErrorNotSupported: return "not there in the null CUDA; its counts name the refused call";
        default: return "an error of the null CUDA";
    }
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    const bool found = *function != nullptr;
    if (status != nullptr) *status = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

}  // extern "C"
