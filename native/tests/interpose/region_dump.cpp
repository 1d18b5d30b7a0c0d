// Prints what a region holds, as JSON, for the tests of the interposer: clients with their counts, and kernels.
#include "tierline/admission.hpp"

#include <cstdio>

int main(int argc, char** argv) {
    using namespace tierline;
    char error[256] = "";
    const MappedRegion region = MappedRegion::open(argc > 1 ? argv[1] : "", false, error, sizeof error);
    if (!region) {
        std::fprintf(stderr, "%s\n", error);
        return 1;
    }
    std::printf("{\"waiting\": %d, \"active\": %d, \"reaped\": %llu, \"sm_ppm\": %d, \"streams_used\": %d, \"clients\": [", region->waiting,
                region->clients_active, static_cast<unsigned long long>(region->reaped), region->sm_ppm, region->streams_used);
    const char* comma = "";
    for (const Client& client : region->clients) {
        if (client.state == 0) continue;
        const ClientStatistics& s = client.statistics;
        std::printf("%s{\"label\": \"%s\", \"state\": %d, \"priority\": %d, \"launches\": %llu, \"at_once\": %llu, "
                    "\"waited\": %llu, \"forced\": %llu, \"bypassed\": %llu, \"overflowed\": %llu, \"denied\": %llu, "
                    "\"memory_bytes\": %lld, \"wait_ns\": %lld}",
                    comma, client.label.data(), client.state, static_cast<int>(client.priority),
                    static_cast<unsigned long long>(s.launches), static_cast<unsigned long long>(s.at_once),
                    static_cast<unsigned long long>(s.waited), static_cast<unsigned long long>(s.forced),
                    static_cast<unsigned long long>(s.bypassed), static_cast<unsigned long long>(s.overflowed),
                    static_cast<unsigned long long>(s.denied_allocations), static_cast<long long>(client.memory_bytes),
                    static_cast<long long>(s.wait_ns));
        comma = ", ";
    }
    std::printf("], \"kernels\": [");
    comma = "";
    for (const Kernel& kernel : region->kernels) {
        if (kernel.key == 0) continue;
        std::printf("%s{\"name\": \"%s\", \"key\": \"%016llx\", \"source\": \"%s\", \"samples\": %d, \"launches\": %llu, "
                    "\"grid\": [%u, %u, %u], \"registers\": %u, \"occupancy\": %u, \"duration_ns\": %lld, \"flops\": %.17g, "
                    "\"bytes\": %.17g}",
                    comma, kernel.name.data(), static_cast<unsigned long long>(kernel.key), name_of(kernel.source),
                    kernel.samples, static_cast<unsigned long long>(kernel.launches), kernel.grid[0], kernel.grid[1],
                    kernel.grid[2], kernel.registers, kernel.occupancy, static_cast<long long>(kernel.demand.duration_ns),
                    kernel.flops, kernel.bytes);
        comma = ", ";
    }
    std::printf("]}\n");
    return 0;
}
