// What both kinds of lines need of sockets.
#pragma once

#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "feed/datagrams.hpp"
#include "transport/ring.hpp"

namespace strikeforge {

class Descriptor {
  public:
    explicit Descriptor(int number = -1) : number_(number) {}
    ~Descriptor() {
        if (number_ >= 0) close(number_);
    }
    Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
    Descriptor& operator=(Descriptor&&) = delete;
    int number() const { return number_; }

  private:
    int number_;
};

[[noreturn]] inline void refuse_line(const Line& line, const std::string& what) {
    throw RingProblem("line " + line.group + ":" + std::to_string(line.port) + ": " + what);
}
[[noreturn]] inline void refuse_line_errno(const Line& line, const std::string& what) {
    refuse_line(line, what + ": " + std::strerror(errno));
}

inline in_addr group_of(const Line& line) {
    in_addr group;
    if (inet_pton(AF_INET, line.group.c_str(), &group) != 1 || !IN_MULTICAST(ntohl(group.s_addr)))
        refuse_line(line, "expected an IPv4 multicast group, 224.0.0.0 to 239.255.255.255");
    return group;
}

inline unsigned interface_of(const Line& line) {
    if (line.interface.empty()) return 0;
    const unsigned index = if_nametoindex(line.interface.c_str());
    if (index == 0) refuse_line(line, "there is no interface '" + line.interface + "': see `ip link`");
    return index;
}

// A UDP socket that made the interface join the group.
inline Descriptor joined(const Line& line) {
    Descriptor socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket.number() < 0) refuse_line_errno(line, "can't open a socket");
    ip_mreqn membership{group_of(line), {}, static_cast<int>(interface_of(line))};
    if (setsockopt(socket.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &membership, sizeof(membership)) != 0)
        refuse_line_errno(line, "can't join the group" + (line.interface.empty() ? std::string(": name its interface")
                                                                                 : " on " + line.interface));
    return socket;
}

inline void wait_readable(std::vector<pollfd>& polled, std::int64_t timeout_us) {
    const timespec time{timeout_us / 1'000'000, timeout_us % 1'000'000 * 1000};
    ppoll(polled.data(), polled.size(), &time, nullptr);  // an interrupted wait is a short one
}

}  // namespace strikeforge
