// A job's side of tierline.report (src/tierline/report.py), kept by a program in C++.
#pragma once

#include <cstdint>

namespace tierline::fake {

// Appends {"step", "loss", "time_ns"} to TIERLINE_REPORT_FILE; does nothing where that is not set.
void report(std::int64_t step, double loss);
// SIGTERM came, or Tierline's stop flag lies in the run folder.
bool should_stop();
void watch_for_stop();
// The step after which an earlier attempt stopped, from TIERLINE_CHECKPOINT_DIR; 0 when there was none.
std::int64_t resumed_step();
void save_step(std::int64_t step);

}  // namespace tierline::fake
