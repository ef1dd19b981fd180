// The gate behind a C interface, for tests that compile it with a planted defect: risk.cpp and its checks are copies,
// in a folder that comes before the product's (-I). tests/serving/host/risk_gates.py is its caller.
#include "host/risk.cpp"

using namespace strikeforge;

namespace {

struct Held {
    KeptOrders kept{1024};
    std::atomic<std::uint32_t> kill{0};
    std::vector<ContractState> contracts;
    RiskGate gate;
    Held(const Limits& limits, size_t count) : contracts(count), gate(limits, count, kept, &kill) {}
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
Held* gate_new(const Limits* limits, size_t contracts) {
    return new Held(*limits, contracts);
}
void gate_free(Held* held) {
    delete held;
}
double* gate_contracts(Held* held) {
    return reinterpret_cast<double*>(held->contracts.data());
}
void gate_on_market(Held* held, const Market* market) {
    held->gate.on_market(*market, held->contracts);
}
unsigned gate_submit(Held* held, unsigned contract, unsigned flags, double price, double quantity,
                     const Market* market) {
    const Intent intent{static_cast<std::uint16_t>(contract), static_cast<std::uint8_t>(flags), price, quantity};
    return static_cast<unsigned>(held->gate.submit(intent, *market, held->contracts));
}
void gate_halt(Held* held, unsigned why, const Market* market) {
    held->gate.halt(static_cast<Reason>(why), *market, held->contracts);
}
void gate_reduce(Held* held, unsigned why) {
    held->gate.reduce(static_cast<Reason>(why));
}
void gate_resume(Held* held) {
    held->gate.resume();
}
void gate_set_limits(Held* held, const Limits* limits) {
    held->gate.set_limits(*limits);
}
void gate_set_kill(Held* held, int killed) {
    held->kill = killed;
}
const void* gate_records(Held* held, size_t* count) {
    *count = held->kept.records().size();
    return held->kept.records().data();
}
void gate_forget(Held* held) {
    held->kept.clear();
}
std::uint64_t gate_refused(Held* held, unsigned reason) {
    return held->gate.refused(static_cast<Reason>(reason));
}
unsigned gate_state(Held* held) {
    return static_cast<unsigned>(held->gate.state());
}
unsigned gate_why(Held* held) {
    return static_cast<unsigned>(held->gate.why());
}
double gate_profit(Held* held) {
    return held->gate.profit();
}
}
#pragma GCC visibility pop
