// CUDA C on a CPU: enough of it to run the project's kernels, compiled by g++ with `-include cuda_host.h`.
//
// The threads of a block are fibers that a scheduler runs one at a time; a fiber runs until it meets a barrier or a
// shuffle, and goes on when all threads that have to be there are there, at the same line. A barrier that some thread
// never reaches, because it left or waits elsewhere, ends the launch with a message. Blocks run one after the other.
//
// Threads run in ascending or descending order. What a missing barrier hides in one order shows in the other.

#pragma once

#include <csetjmp>
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <ucontext.h>
#include <vector>

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __shared__ static
#define __align__(n) alignas(n)
#define DYNAMIC_SHARED(name) unsigned char* name = cuda_host::dynamic_shared

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_host {

constexpr size_t STACK_BYTES = 32 << 10, GUARD_BYTES = 4096, MAX_SHARED_BYTES = 48 << 10;
constexpr unsigned WARP = 32;
constexpr unsigned char POISON = 0xA5;

enum class State { READY, AT_BLOCK, AT_WARP, GONE };

struct Fiber {
    ucontext_t start;
    jmp_buf point;
    bool started = false;
    State state = State::READY;
    int line = 0;
    unsigned mask = 0;
    int turn = 0;             // a lane may be one shuffle ahead of another's reading: two slots, in turn
    unsigned long long slot[2] = {0, 0};
};

static unsigned char* dynamic_shared;
static std::vector<Fiber> fibers;
static std::vector<unsigned char> stacks;
static Fiber* current;
static jmp_buf scheduler;
static ucontext_t scheduler_start;
static std::function<void()> body;
static const char* misuse;  // what a kernel did that is not emulated

[[gnu::noinline]] inline void wait(State state, int line, unsigned mask)
{
    current->state = state;
    current->line = line;
    current->mask = mask;
    if (_setjmp(current->point) == 0) _longjmp(scheduler, 1);
}

inline void enter()
{
    body();
    current->state = State::GONE;
    _longjmp(scheduler, 1);
}

[[gnu::noinline]] inline void resume(unsigned thread)
{
    current = &fibers[thread];
    threadIdx.x = thread;
    if (_setjmp(scheduler) != 0) return;
    if (current->started) _longjmp(current->point, 1);
    current->started = true;
    getcontext(&current->start);
    current->start.uc_stack = {&stacks[thread * STACK_BYTES], 0, STACK_BYTES};
    makecontext(&current->start, enter, 0);
    swapcontext(&scheduler_start, &current->start);
}

inline std::string place(const Fiber& fiber)
{
    if (fiber.state == State::GONE) return "has left";
    const char* what = fiber.state == State::AT_BLOCK ? "__syncthreads" : "a warp's barrier or shuffle";
    return "waits at " + std::string(what) + " in line " + std::to_string(fiber.line);
}

// Let go all fibers whose barrier is complete; whether there was one.
inline bool release()
{
    bool some = false;
    const unsigned count = fibers.size();
    for (unsigned first = 0; first < count; first += WARP) {
        for (unsigned i = first; i < first + WARP && i < count; ++i) {
            if (fibers[i].state != State::AT_WARP) continue;
            bool complete = true;
            for (unsigned lane = 0; lane < WARP; ++lane) {
                if (!(fibers[i].mask >> lane & 1)) continue;
                if (first + lane >= count) { complete = false; break; }
                const Fiber& other = fibers[first + lane];
                complete &= other.state == State::AT_WARP && other.line == fibers[i].line && other.mask == fibers[i].mask;
            }
            if (!complete) continue;
            const unsigned mask = fibers[i].mask;
            for (unsigned lane = 0; lane < WARP; ++lane)
                if (mask >> lane & 1) fibers[first + lane].state = State::READY;
            some = true;
        }
    }
    if (some) return true;
    for (const Fiber& fiber : fibers)
        if (fiber.state != State::AT_BLOCK || fiber.line != fibers[0].line) return false;
    for (Fiber& fiber : fibers) fiber.state = State::READY;
    return true;
}

// Empty, or why the block could not go on.
inline std::string run_block(unsigned threads, size_t shared_bytes, bool descending)
{
    static std::vector<unsigned char> shared(MAX_SHARED_BYTES + 2 * GUARD_BYTES);
    std::memset(shared.data(), POISON, shared.size());
    dynamic_shared = shared.data() + GUARD_BYTES;
    dynamic_shared += -(uintptr_t)dynamic_shared % 16;
    misuse = nullptr;
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
        fiber.started = false;
        fiber.state = State::READY;
        fiber.turn = 0;
    }
    stacks.resize(threads * STACK_BYTES);
    for (;;) {
        unsigned gone = 0;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned thread = descending ? threads - 1 - i : i;
            if (fibers[thread].state == State::READY) resume(thread);
            if (misuse) return misuse;
            gone += fibers[thread].state == State::GONE;
        }
        if (gone == threads) break;
        if (release()) continue;
        unsigned waiting = 0;
        while (fibers[waiting].state == State::GONE) ++waiting;
        unsigned other = 0;
        while (other < threads && fibers[other].state == fibers[waiting].state && fibers[other].line == fibers[waiting].line)
            ++other;
        std::string message = "a barrier that not all threads reach: thread " + std::to_string(waiting) + " " +
                              place(fibers[waiting]);
        if (other < threads) message += ", thread " + std::to_string(other) + " " + place(fibers[other]);
        return message;
    }
    for (size_t i = 0; i < GUARD_BYTES / 2; ++i)
        if (dynamic_shared[shared_bytes + i] != POISON || dynamic_shared[-1 - (ptrdiff_t)i] != POISON)
            return "a thread wrote outside the " + std::to_string(shared_bytes) + " bytes of shared memory";
    return "";
}

template <class T> T shuffle(unsigned mask, T value, int from, int line)
{
    static_assert(sizeof(T) <= 8);
    if (mask != 0xffffffffu) misuse = "a shuffle among some lanes of a warp alone";
    const unsigned thread = threadIdx.x, lane = thread % WARP;
    const int turn = fibers[thread].turn;
    fibers[thread].turn = 1 - turn;
    std::memcpy(&fibers[thread].slot[turn], &value, sizeof(T));
    wait(State::AT_WARP, line, mask);
    if (from < 0 || from >= (int)WARP) return value;
    T received;
    std::memcpy(&received, &fibers[thread - lane + from].slot[turn], sizeof(T));
    return received;
}

}  // namespace cuda_host

#define __syncthreads() cuda_host::wait(cuda_host::State::AT_BLOCK, __LINE__, 0)
#define __syncwarp() cuda_host::wait(cuda_host::State::AT_WARP, __LINE__, 0xffffffffu)
#define __shfl_up_sync(mask, value, delta) \
    cuda_host::shuffle(mask, value, (int)(threadIdx.x % 32) - (int)(delta), __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    cuda_host::shuffle(mask, value, (int)(threadIdx.x % 32) + (int)(delta), __LINE__)

// Run a kernel whose arguments are all 64 bits wide. An empty message means that it ran.
extern "C" __global__ void launch_on_host(void* kernel, unsigned grid_x, unsigned grid_y, unsigned threads,
                                          unsigned shared_bytes, const unsigned long long* arguments, int descending,
                                          char* message, size_t message_bytes)
{
    typedef unsigned long long u;
    typedef void (*Kernel)(u, u, u, u, u, u, u, u);  // what a kernel does not take it does not see
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const u* a = arguments;
    cuda_host::body = [=] { ((Kernel)kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]); };
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    std::string said;
    if (shared_bytes > cuda_host::MAX_SHARED_BYTES) said = "more than 48 KB of shared memory";
    for (unsigned y = 0; y < grid_y && said.empty(); ++y) {
        for (unsigned x = 0; x < grid_x && said.empty(); ++x) {
            blockIdx = {x, y, 0};
            said = cuda_host::run_block(threads, shared_bytes, descending != 0);
        }
    }
    std::snprintf(message, message_bytes, "%s", said.c_str());
}
