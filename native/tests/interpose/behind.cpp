// A library that stands behind the preloaded one in load order and looks for what comes after itself, as wrappers do.
#include <dlfcn.h>

extern "C" __attribute__((visibility("default"))) void* behind_next(const char* symbol) { return dlsym(RTLD_NEXT, symbol); }
