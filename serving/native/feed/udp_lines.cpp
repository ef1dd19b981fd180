// Lines read from sockets: recvmmsg into buffers made beforehand, stamped by the kernel (SO_TIMESTAMPNS).
#include <array>

#include "feed/datagrams.hpp"
#include "feed/frame.hpp"
#include "feed/sockets.hpp"

namespace strikeforge {

namespace {

constexpr size_t batch = 32, buffer_bytes = 2048, control_bytes = 128;
static_assert(most_frame_bytes < buffer_bytes);

struct Messages {
    std::array<std::array<std::uint8_t, buffer_bytes>, batch> data;
    alignas(cmsghdr) std::array<std::array<char, control_bytes>, batch> control;
    std::array<iovec, batch> parts;
    std::array<mmsghdr, batch> headers;
};

class UdpLine {
  public:
    UdpLine(const Line& line, int receive_buffer_bytes) : socket_(joined(line)), messages_(new Messages) {
        const int on = 1, off = 0;
        set(line, SOL_SOCKET, SO_REUSEADDR, on, "share the port");
        set(line, SOL_SOCKET, SO_TIMESTAMPNS, on, "ask for time stamps");
        set(line, SOL_SOCKET, SO_RXQ_OVFL, on, "ask for the count of drops");
        set(line, IPPROTO_IP, IP_MULTICAST_ALL, off, "leave other groups out");
        // The first needs CAP_NET_ADMIN; the second gives what the system's limit allows (net.core.rmem_max).
        if (setsockopt(socket_.number(), SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes, sizeof(int)) != 0)
            set(line, SOL_SOCKET, SO_RCVBUF, receive_buffer_bytes, "size its buffer");
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(line.port);
        address.sin_addr = group_of(line);
        if (bind(socket_.number(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
            refuse_line_errno(line, "can't listen");
    }

    int number() const { return socket_.number(); }

    size_t receive(DatagramHandler& handler, SourceCounts& counts) {
        Messages& all = *messages_;
        for (size_t at = 0; at < batch; ++at) {
            all.parts[at] = {all.data[at].data(), buffer_bytes};
            all.headers[at].msg_hdr = {nullptr, 0, &all.parts[at], 1, all.control[at].data(), control_bytes, 0};
        }
        const int got = recvmmsg(socket_.number(), all.headers.data(), batch, MSG_DONTWAIT, nullptr);
        for (int at = 0; at < got; ++at) {
            msghdr& header = all.headers[static_cast<size_t>(at)].msg_hdr;
            const std::int64_t stamp_ns = stamp_of(header);
            ++counts.datagrams;
            const size_t bytes = all.headers[static_cast<size_t>(at)].msg_len;
            if ((header.msg_flags & MSG_TRUNC) != 0 || bytes > most_frame_bytes)
                ++counts.too_long;
            else
                handler.on_datagram({all.data[static_cast<size_t>(at)].data(), bytes, stamp_ns});
        }
        return got > 0 ? static_cast<size_t>(got) : 0;
    }

    std::uint32_t dropped() const { return dropped_; }

  private:
    void set(const Line& line, int level, int option, int value, const char* what) {
        if (setsockopt(socket_.number(), level, option, &value, sizeof(value)) != 0)
            refuse_line_errno(line, std::string("can't ") + what);
    }

    std::int64_t stamp_of(msghdr& header) {
        std::int64_t stamp_ns = 0;
        for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
            if (part->cmsg_level != SOL_SOCKET) continue;
            if (part->cmsg_type == SCM_TIMESTAMPNS) {
                timespec time;
                std::memcpy(&time, CMSG_DATA(part), sizeof(time));
                stamp_ns = time.tv_sec * 1'000'000'000LL + time.tv_nsec;
            } else if (part->cmsg_type == SO_RXQ_OVFL) {
                std::memcpy(&dropped_, CMSG_DATA(part), sizeof(dropped_));
            }
        }
        return stamp_ns;
    }

    Descriptor socket_;
    std::unique_ptr<Messages> messages_;
    std::uint32_t dropped_ = 0;  // since the socket was opened
};

class UdpLines final : public DatagramSource {
  public:
    UdpLines(const std::vector<Line>& lines, int receive_buffer_bytes) {
        for (const Line& line : lines) {
            lines_.emplace_back(line, receive_buffer_bytes);
            polled_.push_back({lines_.back().number(), POLLIN, 0});
        }
    }
    Received receive(DatagramHandler& handler) override {
        Received received{0, true};
        for (UdpLine& line : lines_) {
            const size_t got = line.receive(handler, counts_);
            received.datagrams += got;
            received.all = received.all && got < batch;
        }
        return received;
    }
    void wait(std::int64_t timeout_us) override { wait_readable(polled_, timeout_us); }
    SourceCounts counts() override {
        counts_.kernel_dropped = 0;
        for (const UdpLine& line : lines_) counts_.kernel_dropped += line.dropped();
        return counts_;
    }

  private:
    std::vector<UdpLine> lines_;
    std::vector<pollfd> polled_;
    SourceCounts counts_;
};

}  // namespace

std::unique_ptr<DatagramSource> open_udp_lines(const std::vector<Line>& lines, int receive_buffer_bytes) {
    return std::make_unique<UdpLines>(lines, receive_buffer_bytes);
}

}  // namespace strikeforge
