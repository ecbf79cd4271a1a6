// Memory, copies and fills: all of it the host's, carried out when somebody waits.

#include "null_cuda.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>

namespace null_cuda {

namespace {

constexpr size_t PINNED_ALIGNMENT = 4096;
constexpr unsigned char UNWRITTEN = 0x5A;  // in fresh pinned memory

enum class Place { PAGEABLE, PINNED, DEVICE };

struct Block {
    size_t num_bytes;
    Place place;
    int device;
};

std::map<uintptr_t, Block>& blocks() {
    static auto* made = new std::map<uintptr_t, Block>;
    return *made;
}

std::map<int, size_t>& bytes_in_use() {
    static auto* made = new std::map<int, size_t>;
    return *made;
}

uintptr_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

const Block* block_of(const void* pointer) {
    auto after = blocks().upper_bound(address_of(pointer));
    if (after == blocks().begin()) return nullptr;
    const auto& [start, block] = *std::prev(after);
    return address_of(pointer) < start + block.num_bytes ? &block : nullptr;
}

Place place_of(const void* pointer) {
    const Block* block = block_of(pointer);
    return block == nullptr ? Place::PAGEABLE : block->place;
}

// How a copy is counted: H2D, D2H, D2D or H2H, and what kind of host memory it is from or to.
std::string copy_name(Place to, Place from) {
    std::string name = from == Place::DEVICE ? "D2" : "H2";
    name += to == Place::DEVICE ? "D" : "H";
    if (from == Place::DEVICE && to == Place::DEVICE) return name;
    const bool is_pageable = from == Place::PAGEABLE || to == Place::PAGEABLE;
    return name + (is_pageable ? " pageable" : " pinned");
}

void count_copy(const std::string& name, size_t num_bytes) {
    touch("copy");
    count("copies", name);
    count("copied bytes", name, static_cast<long>(num_bytes));
}

void fill(void* pointer, int value, size_t num_bytes, Stream& stream) {
    touch("fill");
    count("fills", "cudaMemset");
    enqueue(stream, [=] { std::memset(pointer, value, num_bytes); });
}

// Queue a copy and count it, with what CUDA does where pageable memory is involved.
cudaError_t copy(void* to, const void* from, size_t num_bytes, Stream& stream) {
    Locked locked;
    const Place target = place_of(to), source = place_of(from);
    count_copy(copy_name(target, source), num_bytes);
    if (source == Place::PAGEABLE && target == Place::DEVICE) {
        // CUDA takes the bytes into memory of its own before it returns.
        enqueue(stream, [to, staged = std::string(static_cast<const char*>(from), num_bytes)] {
            std::memcpy(to, staged.data(), staged.size());
        });
        return cudaSuccess;
    }
    if (target == Place::PAGEABLE) {
        count_sync("copy to pageable memory");
        run_until(stream, stream.queued);
        std::memcpy(to, from, num_bytes);
        return cudaSuccess;
    }
    enqueue(stream, [=] { std::memmove(to, from, num_bytes); });
    return cudaSuccess;
}

}  // namespace

size_t bytes_of_device() {
    static const char* gigabytes = std::getenv("NULLCUDA_GB");
    return static_cast<size_t>(gigabytes != nullptr ? std::atoi(gigabytes) : 80) << 30;
}

}  // namespace null_cuda

using namespace null_cuda;

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t num_bytes) {
    Locked locked;
    touch("memory");
    const int device = current_device();
    if (bytes_in_use()[device] + num_bytes > bytes_of_device()) return failed(cudaErrorMemoryAllocation);
    // Zeros, and no page of them is there before it is written: networks of many GB cost nothing here.
    *pointer = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*pointer == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
    blocks()[address_of(*pointer)] = {num_bytes, Place::DEVICE, device};
    bytes_in_use()[device] += num_bytes;
    count("allocations", "cudaMalloc");
    return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
    Locked locked;
    auto found = blocks().find(address_of(pointer));
    if (found == blocks().end()) return cudaSuccess;
    const Block block = found->second;
    count_sync("cudaFree");
    run_device(block.device);
    bytes_in_use()[block.device] -= block.num_bytes;
    blocks().erase(found);
    munmap(pointer, block.num_bytes);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, size_t num_bytes, unsigned) {
    Locked locked;
    touch("pinned memory");
    const size_t rounded = (num_bytes + PINNED_ALIGNMENT - 1) / PINNED_ALIGNMENT * PINNED_ALIGNMENT;
    *pointer = std::aligned_alloc(PINNED_ALIGNMENT, rounded);
    if (*pointer == nullptr) return failed(cudaErrorMemoryAllocation);
    std::memset(*pointer, UNWRITTEN, num_bytes);
    blocks()[address_of(*pointer)] = {num_bytes, Place::PINNED, current_device()};
    count("allocations", "cudaHostAlloc");
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
    Locked locked;
    for (int device = 0; device < num_devices(); ++device) run_device(device);
    blocks().erase(address_of(pointer));
    std::free(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void* pointer, size_t num_bytes, unsigned) {
    Locked locked;
    touch("pinned memory");
    blocks()[address_of(pointer)] = {num_bytes, Place::PINNED, current_device()};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* pointer) {
    Locked locked;
    for (int device = 0; device < num_devices(); ++device) run_device(device);
    blocks().erase(address_of(pointer));
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    Locked locked;
    touch("memory");
    *total_bytes = bytes_of_device();
    *free_bytes = *total_bytes - bytes_in_use()[current_device()];
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    Locked locked;
    std::memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->hostPointer = const_cast<void*>(pointer);
    const Block* block = block_of(pointer);
    if (block == nullptr) return cudaSuccess;
    attributes->type = block->place == Place::DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = block->device;
    attributes->devicePointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind, cudaStream_t stream) {
    return copy(to, from, num_bytes, stream_of(stream));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t num_bytes, cudaMemcpyKind) {
    Locked locked;
    Stream& stream = stream_of(nullptr);
    count_copy(copy_name(place_of(to), place_of(from)), num_bytes);
    count_sync("cudaMemcpy");
    run_until(stream, stream.queued);
    std::memmove(to, from, num_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t num_bytes, cudaStream_t stream) {
    count_copy("between devices", num_bytes);
    enqueue(stream_of(stream), [=] { std::memmove(to, from, num_bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t num_bytes, cudaStream_t stream) {
    fill(pointer, value, num_bytes, stream_of(stream));
    return cudaSuccess;
}

cudaError_t cudaMemset(void* pointer, int value, size_t num_bytes) {
    fill(pointer, value, num_bytes, stream_of(nullptr));
    return cudaSuccess;
}

// A move that torch makes by a kernel, carried out: row i of `to` becomes row index[i] of `from`, when its turn in the
// stream comes. All are addresses on the device.
void null_cuda_gather_rows(cudaStream_t stream, void* to, const void* from, const int64_t* index, size_t num_rows,
                           size_t row_bytes) {
    enqueue(stream_of(stream), [=] {
        for (size_t row = 0; row < num_rows; ++row) {
            const char* source = static_cast<const char*>(from) + index[row] * static_cast<int64_t>(row_bytes);
            std::memcpy(static_cast<char*>(to) + row * row_bytes, source, row_bytes);
        }
    });
}

}  // extern "C"
