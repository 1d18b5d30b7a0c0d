// A program that has nothing to do with CUDA: it must run as ever.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>

int main() {
    void* const library = ::dlopen("libm.so.6", RTLD_NOW);
    using Cosine = double (*)(double);
    const auto cosine = library != nullptr ? reinterpret_cast<Cosine>(::dlsym(library, "cos")) : nullptr;
    std::printf("{\"cosine\": %.3f, \"driver_loaded\": %s, \"missing\": %s}\n", cosine != nullptr ? cosine(0.0) : -1.0,
                ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD) != nullptr ? "true" : "false",
                ::dlsym(RTLD_DEFAULT, "no_such_symbol_anywhere") == nullptr ? "true" : "false");
    return 0;
}
