#include "transport/shared_memory.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "transport/ring.hpp"

namespace strikeforge {

namespace {

using Inode = std::pair<dev_t, ino_t>;

[[noreturn]] void refuse_errno(const std::string& path, const std::string& what, int error) {
    throw RingProblem("ring '" + path + "': " + what + ": " + std::strerror(error));
}

struct stat status_of(const std::string& path, int descriptor) {
    struct stat found;
    if (::fstat(descriptor, &found) != 0) refuse_errno(path, "can't be looked at", errno);
    return found;
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

std::string in_proc(int descriptor) {
    return "/proc/self/fd/" + std::to_string(descriptor);
}

struct flock one_byte(short type, off_t byte) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return lock;
}

// What this process has open and mapped. Held through a fork, so that the child finds it whole.
std::mutex known_mutex;
std::map<Inode, std::weak_ptr<Mapping>> mappings;
std::set<SharedFile*> open_files;

}  // namespace

class Mapping {
  public:
    Mapping(std::byte* at, size_t size) : address(at), bytes(size) {}
    ~Mapping() { ::munmap(address, bytes); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    std::byte* const address;
    const size_t bytes;
};

std::unique_ptr<SharedFile> SharedFile::open(const std::string& path) {
    // O_NONBLOCK: a pipe of that name is refused below instead of waited for.
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) {
        if (errno == ENOENT) return nullptr;
        if (errno == ELOOP)
            refuse_ring(path, "a symbolic link", "the ring itself", "name the file that is meant, or remove the link");
        refuse_errno(path, "can't be opened for reading and writing", errno);
    }
    std::unique_ptr<SharedFile> file(new SharedFile(path, descriptor));
    const struct stat found = status_of(path, descriptor);
    if (!S_ISREG(found.st_mode)) refuse_ring(path, "no regular file", "a ring", "name another path");
    if (found.st_uid != ::geteuid())
        refuse_ring(path, "a file of user " + std::to_string(found.st_uid),
                    "one of user " + std::to_string(::geteuid()), "run as that user, or name another path");
    if ((found.st_mode & 07777) != 0600) {
        char mode[8];
        std::snprintf(mode, sizeof mode, "%04o", static_cast<unsigned>(found.st_mode & 07777));
        refuse_ring(path, std::string("mode ") + mode, "0600 (nobody else may open it)",
                    "remove the file if nobody uses it; its writer makes it anew");
    }
    return file;
}

std::unique_ptr<SharedFile> SharedFile::make(const std::string& path, size_t bytes) {
    const std::string folder = folder_of(path);
    const int descriptor = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (descriptor < 0)
        refuse_errno(path, "can't be made in the folder '" + folder + "' (/dev/shm is meant for it)", errno);
    std::unique_ptr<SharedFile> file(new SharedFile(path, descriptor));
    // Reserved now: where memory lacks later, a store into the mapping would be a SIGBUS.
    const int error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
    if (error != 0) refuse_errno(path, "there is no room for its " + std::to_string(bytes) + " bytes", error);
    if (::fchmod(descriptor, 0600) != 0) refuse_errno(path, "can't be given the mode 0600", errno);
    return file;
}

SharedFile::SharedFile(const std::string& path, int descriptor) : path_(path), descriptor_(descriptor) {
    static const int registered =
        ::pthread_atfork([] { known_mutex.lock(); }, [] { known_mutex.unlock(); }, close_all_in_child);
    if (registered != 0) refuse_errno(path, "can't be kept from a child process", registered);
    const std::lock_guard<std::mutex> guard(known_mutex);
    open_files.insert(this);
}

SharedFile::~SharedFile() {
    const std::lock_guard<std::mutex> guard(known_mutex);
    open_files.erase(this);
    mapping_.reset();
    if (descriptor_ >= 0) ::close(descriptor_);
}

void SharedFile::close_all_in_child() {
    for (SharedFile* file : open_files) {
        if (file->descriptor_ >= 0) ::close(file->descriptor_);
        file->descriptor_ = -1;
    }
    known_mutex.unlock();
}

bool SharedFile::publish() {
    if (::linkat(AT_FDCWD, in_proc(descriptor_).c_str(), AT_FDCWD, path_.c_str(), AT_SYMLINK_FOLLOW) == 0) return true;
    if (errno == EEXIST) return false;
    refuse_errno(path_, "can't be given its name", errno);
}

bool SharedFile::still_named() const {
    struct stat named;
    if (::lstat(path_.c_str(), &named) != 0) return false;
    const struct stat open = status_of(path_, descriptor_);
    return named.st_dev == open.st_dev && named.st_ino == open.st_ino;
}

size_t SharedFile::size() const {
    return static_cast<size_t>(status_of(path_, descriptor_).st_size);
}

size_t SharedFile::read(void* to, size_t bytes) const {
    const ssize_t count = ::pread(descriptor_, to, bytes, 0);
    if (count < 0) refuse_errno(path_, "can't be read", errno);
    return static_cast<size_t>(count);
}

std::byte* SharedFile::map(size_t bytes) {
    const struct stat found = status_of(path_, descriptor_);
    const std::lock_guard<std::mutex> guard(known_mutex);
    std::weak_ptr<Mapping>& known = mappings[{found.st_dev, found.st_ino}];
    mapping_ = known.lock();
    if (!mapping_ || mapping_->bytes != bytes) {
        // Opened once more: a mapping keeps the description that it was made of, and with it its locks, beyond ours.
        const int again = ::open(in_proc(descriptor_).c_str(), O_RDWR | O_CLOEXEC);
        if (again < 0) refuse_errno(path_, "can't be opened to be mapped", errno);
        void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, again, 0);
        const int error = errno;
        ::close(again);
        if (address == MAP_FAILED) refuse_errno(path_, "can't be mapped", error);
        mapping_ = std::make_shared<Mapping>(static_cast<std::byte*>(address), bytes);
        known = mapping_;
        std::erase_if(mappings, [](const auto& entry) { return entry.second.expired(); });
    }
    return mapping_->address;
}

bool SharedFile::lock(off_t byte) {
    struct flock wanted = one_byte(F_WRLCK, byte);
    if (::fcntl(descriptor_, F_OFD_SETLK, &wanted) == 0) return true;
    if (errno == EAGAIN || errno == EACCES) return false;
    refuse_errno(path_, "can't be locked", errno);
}

void SharedFile::unlock(off_t byte) {
    struct flock wanted = one_byte(F_UNLCK, byte);
    if (::fcntl(descriptor_, F_OFD_SETLK, &wanted) != 0) refuse_errno(path_, "can't be unlocked", errno);
}

bool SharedFile::locked_by_another(off_t byte) const {
    struct flock asked = one_byte(F_WRLCK, byte);
    if (::fcntl(descriptor_, F_OFD_GETLK, &asked) != 0) refuse_errno(path_, "can't be asked for its locks", errno);
    return asked.l_type != F_UNLCK;
}

void refuse_ring(const std::string& path, const std::string& found, const std::string& expected,
                 const std::string& remedy) {
    throw RingProblem("ring '" + path + "': found " + found + ", expected " + expected + ": " + remedy);
}

void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value, std::int64_t timeout_ns) {
    const timespec timeout = {timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void wake_all(std::atomic<std::uint32_t>& word) {
    ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool be_reached_by_barriers() {
    return ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

bool barrier_everywhere() {
    return ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
}

}  // namespace strikeforge
