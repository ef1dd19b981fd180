#include "host/outside.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace strikeforge {

namespace {

std::atomic<Board*> switched{nullptr};
static_assert(std::atomic<Board*>::is_always_lock_free, "a signal's handler may use nothing else");

void on_signal(int signal) {
    Board* board = switched.load(std::memory_order_acquire);
    if (board == nullptr) return;
    if (signal == SIGUSR1)
        board->kill.store(static_cast<std::uint32_t>(KillSource::signal), std::memory_order_release);
    else
        board->stop.store(1, std::memory_order_release);
}

// A thread takes over its maker's core and priority: here the loop's, which spins and, with a real-time priority, would
// never let it run. So it goes where the process's first thread may run, and before the loop; it sleeps until called.
// The system's error number, or 0.
int put_before_the_loop(pthread_t thread) {
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof cores, &cores)) return errno;
    if (const int error = pthread_setaffinity_np(thread, sizeof cores, &cores)) return error;
    int policy;
    sched_param priority;
    if (const int error = pthread_getschedparam(pthread_self(), &policy, &priority)) return error;
    if ((policy != SCHED_FIFO && policy != SCHED_RR) || priority.sched_priority == sched_get_priority_max(policy))
        return 0;
    ++priority.sched_priority;
    return pthread_setschedparam(thread, policy, &priority);
}

[[noreturn]] void refuse_errno(const std::string& what) {
    throw HostProblem(what + ": " + std::strerror(errno));
}

}  // namespace

SignalSwitch::SignalSwitch(Board& board) {
    Board* nobody = nullptr;
    if (!switched.compare_exchange_strong(nobody, &board))
        throw HostProblem("another loop of this process takes the signals already");
    struct sigaction ours = {};
    ours.sa_handler = on_signal;
    ours.sa_flags = SA_RESTART;
    sigemptyset(&ours.sa_mask);
    for (size_t i = 0; i < std::size(signals); ++i) sigaction(signals[i], &ours, &before_[i]);
}

SignalSwitch::~SignalSwitch() {
    for (size_t i = 0; i < std::size(signals); ++i) sigaction(signals[i], &before_[i], nullptr);
    switched.store(nullptr, std::memory_order_release);
}

HaltFile::HaltFile(Board& board, const std::string& folder) : board_(board), path_(folder + "/" + name) {
    changes_ = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    end_ = ::eventfd(0, EFD_CLOEXEC);
    constexpr std::uint32_t seen = IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF |
                                   IN_ONLYDIR | IN_EXCL_UNLINK;
    if (changes_ < 0 || end_ < 0 || ::inotify_add_watch(changes_, folder.c_str(), seen) < 0) {
        const int error = errno;
        if (changes_ >= 0) ::close(changes_);
        if (end_ >= 0) ::close(end_);
        errno = error;
        refuse_errno("the kill file's folder '" + folder + "' can't be watched");
    }
    look();  // after the watch began: nothing is overlooked in between
    thread_ = std::thread([this] { watch(); });
    if (const int error = put_before_the_loop(thread_.native_handle())) {
        end();
        errno = error;
        refuse_errno("the kill file's thread can't be put before the loop");
    }
}

HaltFile::~HaltFile() {
    end();
}

void HaltFile::end() {
    const std::uint64_t one = 1;
    // An eventfd's counter takes a one unless it is about to overflow.
    while (::write(end_, &one, sizeof one) < 0 && errno == EINTR) {
    }
    thread_.join();
    ::close(changes_);
    ::close(end_);
}

void HaltFile::halt() {
    board_.halt_file.store(1, std::memory_order_release);
    board_.kill.store(static_cast<std::uint32_t>(KillSource::file), std::memory_order_release);
}

// Whatever is there by that name counts, a folder or a link too; only its certain absence doesn't.
void HaltFile::look() {
    struct stat found;
    if (::lstat(path_.c_str(), &found) == 0 || errno != ENOENT) {
        if (!board_.halt_file.load(std::memory_order_acquire)) halt();
    } else {
        board_.halt_file.store(0, std::memory_order_release);
    }
}

void HaltFile::watch() {
    pollfd waiting[] = {{changes_, POLLIN, 0}, {end_, POLLIN, 0}};
    alignas(inotify_event) char buffer[4096];
    for (;;) {
        if (::poll(waiting, 2, -1) < 0) {
            if (errno == EINTR) continue;
            return halt();
        }
        if (waiting[1].revents) return;
        const ssize_t bytes = ::read(changes_, buffer, sizeof buffer);
        if (bytes < 0) {
            if (errno == EINTR || errno == EAGAIN) continue;
            return halt();
        }
        for (ssize_t at = 0; at < bytes;) {
            const auto* change = reinterpret_cast<const inotify_event*>(buffer + at);
            if (change->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) return halt();
            const bool named = change->len && std::strcmp(change->name, name) == 0;
            // Made and gone again before anybody looked: it was asked for all the same.
            if (named && (change->mask & (IN_CREATE | IN_MOVED_TO))) halt();
            at += static_cast<ssize_t>(sizeof(inotify_event)) + change->len;
        }
        look();
    }
}

}  // namespace strikeforge
