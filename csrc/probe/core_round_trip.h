// How far apart two cores are: what threads that share their work pay for every line that changes hands.
#pragma once

#include <cstdint>

namespace ualm {

// Seconds that a cache line takes from one thread to another and back, the mean of `turns` of them; negative where the
// machine gives no second thread. The system places both; on one core they wait for each other's turn of it.
double core_round_trip(int64_t turns);

}  // namespace ualm
