// A 64-bit checksum of bytes at the speed of memory, to tell a damaged file from a whole one (not a malicious one).
//
// Eight lanes of words, each step (lane ^ word) * odd: a bijection of the lane and of the word, so no change of a single
// word goes unseen. kernels/checksum.py is the slow twin.
#include <cstdint>
#include <cstring>

#include "abi.h"

namespace {
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;
constexpr int64_t kLanes = 8;
}  // namespace

extern "C" uint64_t rp_checksum(const uint8_t* data, int64_t num_bytes) {
    uint64_t lanes[kLanes];
    for (int64_t k = 0; k < kLanes; k++) lanes[k] = static_cast<uint64_t>(k + 1);
    const int64_t whole = num_bytes / (8 * kLanes) * (8 * kLanes);
    for (int64_t at = 0; at < whole; at += 8 * kLanes) {
        uint64_t words[kLanes];
        memcpy(words, data + at, sizeof words);
        for (int64_t k = 0; k < kLanes; k++) lanes[k] = (lanes[k] ^ words[k]) * kOdd;
    }
    uint64_t words[kLanes] = {};
    memcpy(words, data + whole, static_cast<size_t>(num_bytes - whole));
    uint64_t sum = static_cast<uint64_t>(num_bytes) * kOdd;
    for (int64_t k = 0; k < kLanes; k++) {
        uint64_t lane = (lanes[k] ^ words[k]) * kOdd;
        lane ^= lane >> 29;
        sum = (sum ^ lane) * kOdd;
        sum ^= sum >> 32;
    }
    return sum;
}
