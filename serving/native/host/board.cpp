// Making the board's memory: transport/shared_memory.hpp's file, or this process's own pages.
#include "host/board.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "transport/ring.hpp"
#include "transport/shared_memory.hpp"

namespace strikeforge {

const char* hop_name(Hop hop) {
    constexpr const char* names[] = {"queue", "book",          "features",     "evaluate", "reprice", "decide",
                                     "order", "tick_to_order", "tick_to_done", "advance",  "sweep"};
    static_assert(sizeof(names) / sizeof(*names) == hops);
    return names[static_cast<size_t>(hop)];
}

// One byte of the file is locked as long as its maker lives; the kernel gives it back when the process ends.
constexpr off_t makers_byte = 0;

SharedPage::SharedPage(const std::string& path, size_t bytes) : bytes_(bytes) {
    if (path.empty()) {
        void* memory =
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (memory == MAP_FAILED) throw HostProblem(std::string("no memory for the board: ") + std::strerror(errno));
        data_ = static_cast<std::byte*>(memory);
        return;
    }
    const auto refuse_held = [&] {
        throw HostProblem("'" + path + "' is held by another loop: end that one, or name another path");
    };
    const auto former = SharedFile::open(path);
    if (former && !former->lock(makers_byte)) refuse_held();
    file_ = SharedFile::make(path, bytes);
    if (!file_->lock(makers_byte)) refuse_held();  // it has no name yet
    data_ = file_->map(bytes);
    // Readers of the former one keep it, and see by its process and `alive_ns` that nobody writes it.
    if (former && former->still_named()) ::unlink(path.c_str());
    if (!file_->publish()) refuse_held();
}

SharedPage::~SharedPage() {
    if (!file_) ::munmap(data_, bytes_);
}

}  // namespace strikeforge
