// A file that processes of one user share: checked before it is mapped, locked byte by byte, slept upon.
//
// Locks are those of an open file description (F_OFD_SETLK): the kernel gives them back when the process that holds
// them ends, however it ends, so that a lock says who lives. A child made by fork() would hold its parent's locks with
// it: there the files are closed at once, and what was opened before is `left_behind`. What can't be protected against:
// somebody who shortens a file that is mapped (SIGBUS).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace strikeforge {

// One mapping per file and process, however many objects use it: threads that share a ring share its addresses too,
// which is what lets the thread sanitizer see them both.
class Mapping;

class SharedFile {
  public:
    // The file of that name, or nothing if there is none. RingProblem unless it is a regular file of this user that
    // nobody else may open; symbolic links aren't followed.
    static std::unique_ptr<SharedFile> open(const std::string& path);
    // A new file of so many zeros in that folder, with memory reserved for all of it, and no name until `publish`.
    static std::unique_ptr<SharedFile> make(const std::string& path, size_t bytes);
    ~SharedFile();
    SharedFile(const SharedFile&) = delete;
    SharedFile& operator=(const SharedFile&) = delete;

    bool left_behind() const { return descriptor_ < 0; }  // this process is a child of the one that opened it

    bool publish();                             // gives a new file its name; false if there is a file of that name
    bool still_named() const;                   // the name still means this file
    size_t size() const;                        // now
    size_t read(void* to, size_t bytes) const;  // from its beginning, without mapping it; what there was
    std::byte* map(size_t bytes);               // all of it, every page present

    bool lock(off_t byte);  // false if somebody else has it
    void unlock(off_t byte);
    bool locked_by_another(off_t byte) const;

  private:
    SharedFile(const std::string& path, int descriptor);
    static void close_all_in_child();
    std::string path_;
    int descriptor_;
    std::shared_ptr<Mapping> mapping_;
};

// "ring 'PATH': found FOUND, expected EXPECTED: REMEDY" as a RingProblem.
[[noreturn]] void refuse_ring(const std::string& path, const std::string& found, const std::string& expected,
                              const std::string& remedy);

// Sleeps while the word is `value`, at most so long; may wake for no reason.
void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value, std::int64_t timeout_ns);
void wake_all(std::atomic<std::uint32_t>& word);

// A barrier with one cheap side. `be_reached_by_barriers`: once, in the process with the cheap side, which then needs
// nothing but program order. `barrier_everywhere`: what this thread stored before it is seen by whatever such a
// process does after it, and the other way round; false where the system has no such barrier (membarrier).
bool be_reached_by_barriers();
bool barrier_everywhere();

inline constexpr std::int64_t longest_us = 1'000'000'000'000;  // longer times to wait are taken as this

}  // namespace strikeforge
