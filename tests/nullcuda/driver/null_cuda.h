// A CUDA that computes nothing, for watching what a program asks of its GPUs where there are none.
//
// Loaded before torch (LD_PRELOAD), it stands in for the CUDA runtime, the driver, cuBLAS, cuDNN and NCCL:
//   * memory, pinned and "of the device", is the host's own; copies and fills move real bytes;
//   * a copy, a fill or a collective is queued in its stream and carried out only when the program waits for it: as
//     late as CUDA's rules allow, so a buffer that is used again too early shows as wrong bytes;
//   * kernels and library calls are counted and do nothing, so what they would have written is stale memory;
//   * every rank of a world is taken to hold what this one holds: a collective hands back what this rank brought.
// It can't show numbers of a GPU, times, real NCCL, CUDA graphs, or what a library call launches inside.
//
// Environment: NULLCUDA_DEVICES, how many it shows (1); NULLCUDA_GB, the memory of each (80); NULLCUDA_KERNELS, a
// library of distcxr's kernels compiled for the CPU.
//
// This header is what its parts share. All of it may be called from any thread.
#pragma once

// Types of half precision appear in the libraries' declarations alone; their headers would need more than torch's
// wheels bring along.
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
struct __half;
struct __nv_bfloat16;

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <string>

namespace null_cuda {

// One lock for everything; taken again by the thread that has it, because an operation in a queue may wait for another.
class Locked {
public:
    Locked();
    ~Locked();
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;
};

// ---- counts (counts.cpp)

// With the device's number behind it, the category of the calls that need a context there. Never reset: once opened, a
// context stays.
constexpr char DEVICE_CATEGORY[] = "device ";

// Add to the count of `name` among those of `category`.
void count(const std::string& category, const std::string& name, long number = 1);
// Whether anything was counted in a category.
bool is_counted(const std::string& category);
// Count a kernel or a library's call that would launch some.
void count_launch(const std::string& name);

// ---- devices (devices.cpp)

int num_devices();
int current_device();
void make_current(int device);
// Note a call that needs a context on a device, and so opens one there if the process has none.
void touch(const char* call, int device = current_device());
// `error`, kept for cudaGetLastError.
cudaError_t failed(cudaError_t error);

// ---- streams and events (streams.cpp)

struct Stream {
    int device = 0;
    std::deque<std::function<void()>> waiting;
    uint64_t queued = 0;  // operations ever
    uint64_t done = 0;
};

// The stream of a handle; the current device's own for the default ones.
Stream& stream_of(cudaStream_t handle);
// Put an operation at the end of a stream.
void enqueue(Stream& stream, std::function<void()> operation);
// Carry out a stream's operations up to the given number of them.
void run_until(Stream& stream, uint64_t position);
// Carry out all that waits on a device.
void run_device(int device);
// Count a wait of the host for the device.
void count_sync(const char* call);

// ---- memory (memory.cpp)

size_t bytes_of_device();

}  // namespace null_cuda
