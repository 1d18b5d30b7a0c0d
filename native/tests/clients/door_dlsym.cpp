// The second door: dlopen and dlsym.
#include "found.hpp"

int main() {
    void* const library = client::open_driver();
    const client::Found driver([&](const char* name) { return ::dlsym(library, name); });
    driver.run(3);
    std::printf("{\"door\": \"dlsym\", \"object\": \"%s\", \"missing\": %s}\n",
                client::object_of(driver.launch).c_str(),
                ::dlsym(library, "cuNoSuchFunction") == nullptr ? "true" : "false");
    return 0;
}
