// Ways to the board's switches that pass by Python: signals of the operating system, and a file named HALT.
//
// Both only set atomics; the loop acts on them before its next record and the gate before its next order.
#pragma once

#include <csignal>
#include <string>
#include <thread>

#include "host/board.hpp"

namespace strikeforge {

// As long as it lives SIGUSR1 kills and SIGTERM and SIGINT stop the loop of this board, whoever handled them before;
// then those are back. One at a time in a process: HostProblem.
class SignalSwitch {
  public:
    explicit SignalSwitch(Board& board);
    ~SignalSwitch();
    SignalSwitch(const SignalSwitch&) = delete;
    SignalSwitch& operator=(const SignalSwitch&) = delete;

  private:
    static constexpr int signals[] = {SIGUSR1, SIGTERM, SIGINT};
    struct sigaction before_[3];
};

// Watches a folder for a file named HALT: kills when it appears, also if it is there already, also when the folder can
// no longer be watched; while it is there nobody resumes.
class HaltFile {
  public:
    static constexpr const char* name = "HALT";
    HaltFile(Board& board, const std::string& folder);
    ~HaltFile();
    HaltFile(const HaltFile&) = delete;
    HaltFile& operator=(const HaltFile&) = delete;

  private:
    void watch();
    void end();
    void look();  // is it there?
    void halt();
    Board& board_;
    const std::string path_;
    int changes_ = -1, end_ = -1;  // inotify; eventfd
    std::thread thread_;
};

}  // namespace strikeforge
