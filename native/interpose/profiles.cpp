#include "profiles.hpp"

#include "log.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace tierline::interpose {

namespace {

// Cells of one CSV line; quotes as usual ("" within quotes is one quote). Kernel names hold commas.
std::vector<std::string> split(const std::string& line) {
    std::vector<std::string> cells(1);
    bool quoted = false;
    for (std::size_t index = 0; index < line.size(); ++index) {
        const char letter = line[index];
        if (quoted) {
            if (letter != '"') {
                cells.back() += letter;
            } else if (index + 1 < line.size() && line[index + 1] == '"') {
                cells.back() += '"';
                ++index;
            } else {
                quoted = false;
            }
        } else if (letter == '"') {
            quoted = true;
        } else if (letter == ',') {
            cells.emplace_back();
        } else if (letter != '\r') {
            cells.back() += letter;
        }
    }
    return cells;
}

std::array<std::uint32_t, 3> extents(const std::string& text) {
    std::array<std::uint32_t, 3> value{};
    if (std::sscanf(text.c_str(), "%ux%ux%u", &value[0], &value[1], &value[2]) != 3) value = {};
    return value;
}

Ppm share(const std::string& text) {
    return static_cast<Ppm>(std::clamp(std::strtod(text.c_str(), nullptr), 0.0, 1.0) * kWhole + 0.5);
}

Source source_of(const std::string& text) {
    if (text == "ncu") return Source::counters;
    if (text == "event") return Source::event;
    if (text == "roofline") return Source::roofline;
    return Source::assumed;
}

bool agrees(const std::array<std::uint32_t, 3>& wanted, const std::array<std::uint32_t, 3>& seen) {
    return wanted == std::array<std::uint32_t, 3>{} || wanted == seen;
}

}  // namespace

void Profiles::load(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    if (!file || !std::getline(file, line)) {
        static Once once;
        log_once(once, "the profile file %s cannot be read: kernels are learnt instead", path.c_str());
        return;
    }
    if (line.rfind("\xef\xbb\xbf", 0) == 0) line.erase(0, 3);
    const std::vector<std::string> header = split(line);
    while (std::getline(file, line)) {
        const std::vector<std::string> cells = split(line);
        if (cells.size() != header.size()) continue;
        ProfileRow row;
        for (std::size_t index = 0; index < cells.size(); ++index) {
            const std::string& name = header[index];
            const std::string& text = cells[index];
            if (text.empty()) continue;
            if (name == "key") row.key = std::strtoull(text.c_str(), nullptr, 16);
            if (name == "name") row.name = text;
            if (name == "grid") row.grid = extents(text);
            if (name == "block") row.block = extents(text);
            if (name == "duration_ns") row.demand.duration_ns = std::strtoll(text.c_str(), nullptr, 10);
            if (name == "sm_util") row.demand.sm_ppm = share(text);
            if (name == "bw_util") row.demand.bw_ppm = share(text);
            if (name == "sm_blocks") row.demand.sm_blocks = std::atoi(text.c_str());
            if (name == "flops") row.flops = std::strtod(text.c_str(), nullptr);
            if (name == "bytes") row.bytes = std::strtod(text.c_str(), nullptr);
            if (name == "source") row.source = source_of(text);
        }
        if (!row.name.empty() && row.demand.duration_ns > 0) rows_.push_back(std::move(row));
    }
}

const ProfileRow* Profiles::find(std::uint64_t key, std::string_view name, const std::array<std::uint32_t, 3>& grid,
                                 const std::array<std::uint32_t, 3>& block) const {
    const ProfileRow* by_name = nullptr;
    for (const ProfileRow& row : rows_) {
        if (row.key == key) return &row;
        const bool fits = row.key == 0 && row.name == name && agrees(row.grid, grid) && agrees(row.block, block);
        if (by_name == nullptr && fits) by_name = &row;
    }
    return by_name;
}

}  // namespace tierline::interpose
