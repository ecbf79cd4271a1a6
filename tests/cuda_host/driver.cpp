// A CUDA driver for tests: the few calls that module.py makes, each of its arguments checked, the kernels run on the CPU.
//
// HOST_KERNELS names the library that cuda_host.h was compiled into with kernels.cu.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

static void* const CONTEXT = (void*)0xC0;
static void* const MODULE = (void*)0x30;
static void* const STREAM = (void*)0x77;
static void* library;
static int contexts;  // pushed and not yet popped

static int refuse(const char* why)
{
    std::fprintf(stderr, "driver: %s\n", why);
    return 1;
}

extern "C" {

int cuInit(unsigned) { return 0; }

int cuDriverGetVersion(int* version)
{
    *version = 13000;
    return 0;
}

int cuDeviceGet(int* device, int ordinal)
{
    *device = ordinal + 40;
    return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device)
{
    *context = CONTEXT;
    return device == 43 ? 0 : refuse("another device");
}

int cuCtxPushCurrent_v2(void* context)
{
    ++contexts;
    return context == CONTEXT ? 0 : refuse("another context");
}

int cuCtxPopCurrent_v2(void** context)
{
    *context = CONTEXT;
    return --contexts == 0 ? 0 : refuse("contexts are not popped as they were pushed");
}

int cuModuleLoadData(void** module, const void* image)
{
    *module = MODULE;
    if (contexts != 1) return refuse("no context");
    if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return 218;  // CUDA_ERROR_INVALID_PTX
    library = dlopen(std::getenv("HOST_KERNELS"), RTLD_NOW);
    return library ? 0 : refuse(dlerror());
}

int cuModuleGetFunction(void** function, void* module, const char* name)
{
    if (module != MODULE) return refuse("another module");
    *function = dlsym(library, name);
    return *function ? 0 : 500;  // CUDA_ERROR_NOT_FOUND
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra)
{
    if (contexts != 1) return refuse("no context");
    if (grid_z != 1 || block_y != 1 || block_z != 1 || extra) return refuse("a launch of more than two dimensions");
    if (stream != STREAM) return refuse("another stream");
    unsigned long long arguments[8] = {};
    for (int i = 0; i < 5; ++i) arguments[i] = *(unsigned long long*)parameters[i];  // both kernels take five
    typedef void (*Launch)(void*, unsigned, unsigned, unsigned, unsigned, const unsigned long long*, int, char*, size_t);
    char message[300];
    ((Launch)dlsym(library, "launch_on_host"))(function, grid_x, grid_y, threads, shared_bytes, arguments, 0, message,
                                               sizeof message);
    return *message ? refuse(message) : 0;
}

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found)
{
    char versioned[200];
    std::snprintf(versioned, sizeof versioned, "%s_v2", name);
    void* self = dlopen("libcuda.so.1", RTLD_NOW);
    *function = dlsym(self, name);
    if (!*function) *function = dlsym(self, versioned);
    if (found) *found = *function ? 0 : 1;
    return 0;
}

}  // extern "C"
