// The CSV of TIERLINE_PROFILE: what kernels use when they run alone. The Python package checks and writes such files;
// here a row that makes no sense is left out.
#pragma once

#include "tierline/types.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tierline::interpose {

struct ProfileRow {
    std::uint64_t key = 0;  // 0 = by name and what else is given
    std::string name;
    std::array<std::uint32_t, 3> grid{};   // zeros = any
    std::array<std::uint32_t, 3> block{};
    Demand demand;
    double flops = 0.0;
    double bytes = 0.0;
    Source source = Source::assumed;
};

class Profiles {
public:
    void load(const std::string& path);
    // The row by its key, else the first of that name that agrees; null = none.
    const ProfileRow* find(std::uint64_t key, std::string_view name, const std::array<std::uint32_t, 3>& grid,
                           const std::array<std::uint32_t, 3>& block) const;
    bool empty() const { return rows_.empty(); }

private:
    std::vector<ProfileRow> rows_;
};

}  // namespace tierline::interpose
