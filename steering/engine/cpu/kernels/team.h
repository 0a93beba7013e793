// Threads that compute an operation together. The calling thread shares out pieces of work by counters and never waits for a thread to
// begin: one that sleeps, or that the system has given no processor, is done without. It waits only for pieces that others have begun,
// where OpenMP waits for every thread: an operation of few microseconds pays neither for waking threads nor for a neighbour's time slice.
//
// Between two operations the other threads spin, then sleep. How long is found by each of them: twice as long after work came while it
// spun, half as long after none did.
//
// One team serves the process. While it works for one thread, operations of other threads run in their own thread alone. `use_team`
// chooses between it and OpenMP; without it the functions at the end are those of ATen.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace steering {

inline std::atomic<bool> use_team{false};
inline thread_local int64_t team_threads = 0;  // 0: as many as OpenMP has

// How many threads an operation may have.
inline int64_t thread_count() { return team_threads ? team_threads : at::get_num_threads(); }

class Team {
 public:
  static constexpr int64_t MAX_THREADS = 64;
  using Work = void (*)(const void* context, int64_t thread);

  // Calls work(context, thread) with 0 in the calling thread, and with 1 to threads - 1 in those that are free before it returns. Throws
  // what the first of them throws, once all have ended.
  static void run(int64_t threads, Work work, const void* context) {
    static Team& team = *new Team;  // never destroyed: its threads run until the process ends
    std::unique_lock lock(team.busy, std::try_to_lock);
    threads = std::min(threads, MAX_THREADS);
    if (threads <= 1 || !lock) return work(context, 0);
    for (; team.size < threads - 1; ++team.size) std::thread([index = team.size + 1] { team.serve(index); }).detach();
    team.work = work, team.context = context, team.threads = threads;
    const uint32_t epoch = (team.gate.load(std::memory_order_relaxed) / EPOCH + 1) * EPOCH;
    team.gate.store(epoch | OPEN, std::memory_order_seq_cst);
    if (team.sleepers.load(std::memory_order_seq_cst) > 0) futex(team.gate, FUTEX_WAKE_PRIVATE, MAX_THREADS);
    team.attempt(0);
    team.close();
    if (team.failure) std::rethrow_exception(std::exchange(team.failure, nullptr));
  }

 private:
  static constexpr uint32_t OPEN = 1, ACTIVE = 2, EPOCH = 256;  // fields of the gate: whether threads may begin, how many have
  static constexpr int64_t LEAST_SPIN = 10, MOST_SPIN = 200;    // microseconds: a futex call, and several times waking a thread

  Team() {
    const auto began = std::chrono::steady_clock::now();
    const uint64_t ticks = __rdtsc();
    while (std::chrono::steady_clock::now() - began < std::chrono::milliseconds(1)) _mm_pause();
    microsecond = std::max<uint64_t>(1, (__rdtsc() - ticks) / 1000);
  }

  static void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
    syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
  }

  void attempt(int64_t thread) noexcept {
    try {
      work(context, thread);
    } catch (...) {
      const std::scoped_lock guard(failing);
      if (!failure) failure = std::current_exception();
    }
  }

  // Spins until done(value of the gate), at most `spin` ticks. Whether it is done.
  template <class Done>
  bool spins(uint64_t spin, const Done& done) {
    const uint64_t began = __rdtsc();
    while (true) {
      for (int i = 0; i < 16; ++i) {
        if (done(gate.load(std::memory_order_acquire))) return true;
        _mm_pause();
      }
      if (__rdtsc() - began > spin) return false;
    }
  }

  // Lets no further thread begin and waits for those that have.
  void close() {
    const auto idle = [](uint32_t value) { return value % EPOCH / ACTIVE == 0; };
    if (idle(gate.fetch_and(~OPEN, std::memory_order_seq_cst)) || spins(MOST_SPIN * microsecond, idle)) return;
    waits.store(true, std::memory_order_seq_cst);
    for (uint32_t value; !idle(value = gate.load(std::memory_order_seq_cst));) futex(gate, FUTEX_WAIT_PRIVATE, value);
    waits.store(false, std::memory_order_relaxed);
  }

  void serve(int64_t index) {
    uint32_t seen = 0;
    uint64_t spin = MOST_SPIN * microsecond;
    const auto news = [&](uint32_t value) { return value % ACTIVE == OPEN && value / EPOCH != seen; };
    while (true) {
      if (spins(spin, news)) {
        spin = std::min(2 * spin, MOST_SPIN * microsecond);
      } else {
        spin = std::max(spin / 2, LEAST_SPIN * microsecond);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        for (uint32_t value; !news(value = gate.load(std::memory_order_seq_cst));) futex(gate, FUTEX_WAIT_PRIVATE, value);
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
      }
      uint32_t value = gate.load(std::memory_order_acquire);
      if (!news(value) || !gate.compare_exchange_strong(value, value + ACTIVE, std::memory_order_seq_cst)) continue;
      seen = value / EPOCH;
      if (index < threads) attempt(index);
      gate.fetch_sub(ACTIVE, std::memory_order_seq_cst);
      if (waits.load(std::memory_order_seq_cst)) futex(gate, FUTEX_WAKE_PRIVATE, MAX_THREADS);
    }
  }

  std::mutex busy, failing;
  int64_t size = 0, threads = 0;
  Work work = nullptr;
  const void* context = nullptr;
  std::exception_ptr failure;
  uint64_t microsecond;  // in ticks of the time-stamp counter
  alignas(64) std::atomic<uint32_t> gate{0};
  alignas(64) std::atomic<int32_t> sleepers{0};
  std::atomic<bool> waits{false};
};

// Calls call(begin, end, thread, last) for pieces that cover [0, count). Each thread has a range of its own, whose data may be in its
// cache, and in the team takes pieces of the others' ranges when it is done: at most `piece` each. last: the piece ends the range of `thread`.
template <class Call>
inline void share(int64_t count, int64_t threads, int64_t piece, const Call& call) {
  if (count <= 0) return;
  threads = std::min({threads, count, Team::MAX_THREADS});
  const auto edge = [=](int64_t thread) { return count * thread / threads; };
  if (threads <= 1) return call(0, count, 0, true);
  if (!use_team.load(std::memory_order_relaxed)) {
    at::parallel_for(0, threads, 1, [&](int64_t first, int64_t end) {
      for (int64_t thread = first; thread < end; ++thread) call(edge(thread), edge(thread + 1), thread, true);
    });
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::array<Range, Team::MAX_THREADS> ranges;
  for (int64_t i = 0; i < threads; ++i) {
    ranges[i].next.store(edge(i), std::memory_order_relaxed);
    ranges[i].end = edge(i + 1);
  }
  struct Context {
    const Call& call;
    std::array<Range, Team::MAX_THREADS>& ranges;
    int64_t threads, piece;
  } context{call, ranges, threads, piece};
  Team::run(threads, [](const void* given, int64_t thread) {
    const auto& it = *static_cast<const Context*>(given);
    for (int64_t i = 0; i < it.threads; ++i) {
      const int64_t owner = (thread + i) % it.threads;
      Range& range = it.ranges[owner];
      for (int64_t at; (at = range.next.fetch_add(it.piece)) < range.end;) {
        const int64_t stop = std::min(at + it.piece, range.end);
        it.call(at, stop, owner, stop == range.end);
      }
    }
  }, &context);
}

// at::parallel_for, in the team in pieces of about a quarter of a thread's share, at least `grain`.
template <class Call>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const Call& call) {
  const int64_t count = end - begin;
  if (!use_team.load(std::memory_order_relaxed)) return at::parallel_for(begin, end, grain, call);
  if (count <= 0) return;
  const int64_t threads = std::min<int64_t>(thread_count(), (count + grain - 1) / grain);
  if (threads <= 1) return call(begin, end);
  share(count, threads, std::max(grain, count / (threads * 4)), [&](int64_t from, int64_t to, int64_t, bool) {
    call(begin + from, begin + to);
  });
}

}  // namespace steering
#else
namespace steering {

template <class Call>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const Call& call) {
  at::parallel_for(begin, end, grain, call);
}

}  // namespace steering
#endif
