// What is counted, and the functions through which a program reads it.

#include "null_cuda.h"

#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <mutex>

namespace null_cuda {

namespace {

// Never destroyed: threads of torch may call in while the process ends.
std::recursive_mutex& lock() {
    static auto* made = new std::recursive_mutex;
    return *made;
}

using Category = std::map<std::string, long>;

std::map<std::string, Category>& categories() {
    static auto* made = new std::map<std::string, Category>;
    return *made;
}

std::string readable(const std::string& name) {
    int status = 0;
    char* demangled = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    if (status != 0) return name;
    std::string result = demangled;
    std::free(demangled);
    return result;
}

}  // namespace

Locked::Locked() { lock().lock(); }
Locked::~Locked() { lock().unlock(); }

void count(const std::string& category, const std::string& name, long number) {
    Locked locked;
    categories()[category][name] += number;
}

bool is_counted(const std::string& category) {
    Locked locked;
    return categories().count(category) != 0;
}

void count_launch(const std::string& name) {
    touch("launch");
    count("launches", name);
}

}  // namespace null_cuda

using namespace null_cuda;

// Forget all counts but those of devices.
extern "C" void null_cuda_reset() {
    Locked locked;
    for (auto& [category, names] : categories()) {
        if (category.rfind(DEVICE_CATEGORY, 0) != 0) names.clear();
    }
}

// A line for every count: category, name and number with tabs between. Good until the next call.
extern "C" const char* null_cuda_counts() {
    static auto* text = new std::string;
    Locked locked;
    text->clear();
    for (const auto& [category, names] : categories()) {
        for (const auto& [name, number] : names) {
            *text += category + "\t" + readable(name) + "\t" + std::to_string(number) + "\n";
        }
    }
    return text->c_str();
}

// What the generated stubs call: a function that does nothing and succeeds, and one that is not there.
extern "C" void null_cuda_ignored(const char* name) { count("ignored calls", name); }

extern "C" int null_cuda_refused(const char* name) {
    count("refused calls", name);
    return cudaErrorNotSupported;
}
