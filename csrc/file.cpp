// A file of checksummed chunks in memory, checked by every thread of the pool: read into memory of its own, or mapped.
//
// A mapping serves as well as memory of one's own only where the system maps the page cache in huge pages and lets them be
// held there; `rp_map_file` refuses otherwise, and the caller reads instead. Memory that is mapped and held costs a start no
// copy, is shared by every process that serves the file, and cannot be taken away while it serves.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "abi.h"
#include "pack.h"
#include "team.h"

#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22  // since Linux 5.14; an older one refuses it, and the file is read
#endif

namespace rp {
namespace {

constexpr int64_t kHuge = 2 << 20, kPage = 4096;
constexpr int64_t kRun = 8;  // chunks in a row for one thread: neighbours lie in one huge page, which one thread should fetch

struct Take {
    int32_t fd;  // -1: the file is mapped there
    uint8_t* memory;
    const FileChunk* chunks;
    int64_t count;
    std::atomic<int64_t> failed;  // a chunk that is not what it should be, or `count`
    std::atomic<int32_t> error{0};
};

// Brings a run of mapped chunks in: a disk that fails must be an error here, and would be a signal at the first touch.
bool populate(const Take& take, const FileChunk& first, const FileChunk& last, int32_t& error) {
#ifdef MADV_POPULATE_READ
    const int64_t start = first.offset / kPage * kPage, stop = last.offset + last.bytes;
    if (madvise(take.memory + start, static_cast<size_t>(stop - start), MADV_POPULATE_READ) == 0) return true;
    error = errno;
#else
    (void)take, (void)first, (void)last, (void)error;
#endif
    return false;
}

bool fill(const Take& take, const FileChunk& chunk, int32_t& error) {
    for (int64_t done = 0; done < chunk.bytes;) {
        const ssize_t got = pread(take.fd, take.memory + chunk.offset + done, static_cast<size_t>(chunk.bytes - done), chunk.offset + done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            error = got < 0 ? errno : 0;
            return false;
        }
        done += got;
    }
    return true;
}

void take_region(Team& team, int, void* context) {
    Take& take = *static_cast<Take*>(context);
    team.each(ceil_div(take.count, kRun), [&](int64_t run, int64_t) {
        const int64_t first = run * kRun, end = first + kRun < take.count ? first + kRun : take.count;
        int32_t error = 0;
        bool there = take.fd >= 0 || populate(take, take.chunks[first], take.chunks[end - 1], error);
        for (int64_t i = first; i < end && take.failed.load(std::memory_order_relaxed) == take.count; i++) {
            const FileChunk& chunk = take.chunks[i];
            if (there && take.fd >= 0) there = fill(take, chunk, error);
            if (there && rp_checksum(take.memory + chunk.offset, chunk.bytes) == chunk.checksum) continue;
            take.error.store(error);
            take.failed.store(i);
        }
    });
}

}  // namespace
}  // namespace rp

extern "C" {

int64_t rp_take_chunks(int32_t fd, uint8_t* memory, const FileChunk* chunks, int64_t count, int32_t* error) {
    rp::Take take{fd, memory, chunks, count, {count}, {}};
    rp::parallel(rp::take_region, &take);
    *error = take.error.load();
    return take.failed.load();
}

void* rp_map_file(int32_t fd, int64_t bytes) {
#if defined(MADV_POPULATE_READ) && defined(MLOCK_ONFAULT)
    using namespace rp;
    // Room in which the file can start where a huge page does.
    const size_t room = static_cast<size_t>(round_up(bytes, kHuge) + kHuge);
    uint8_t* area = static_cast<uint8_t*>(mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (area == MAP_FAILED) return nullptr;
    const size_t before = static_cast<size_t>(-reinterpret_cast<intptr_t>(area) & (kHuge - 1));
    uint8_t* memory = area + before;
    const size_t used = static_cast<size_t>(round_up(bytes, kPage));
    if (before) munmap(area, before);
    munmap(memory + used, room - before - used);
    if (mmap(memory, static_cast<size_t>(bytes), PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED ||
        madvise(memory, used, MADV_HUGEPAGE) != 0 || mlock2(memory, used, MLOCK_ONFAULT) != 0) {
        munmap(memory, used);
        return nullptr;
    }
    return memory;
#else
    (void)fd, (void)bytes;
    return nullptr;
#endif
}

void rp_unmap_file(void* memory, int64_t bytes) { munmap(memory, static_cast<size_t>(rp::round_up(bytes, rp::kPage))); }
}
