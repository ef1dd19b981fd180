#include "nets/engine.hpp"

#include "base/subnormals.hpp"

namespace strikeforge {

NativeEngine::NativeEngine(std::vector<Member> members, Precision precision)
    : members_(std::move(members)), precision_(precision) {
    if (members_.empty()) throw EngineProblem("a bundle has at least one member");
    for (const Member& member : members_) {
        if (member.encoder->step_features() != step_features() || member.encoder->window_steps() != window_steps() ||
            member.head->contract_features() != contract_features())
            throw EngineProblem("members of the bundle differ in step features, window or contract features");
        if (member.encoder->context_size() != member.head->context_size())
            throw EngineProblem("a member's encoder and head differ in context size");
        context_size_ += member.encoder->context_size();
    }
    reset();
}

void NativeEngine::reset() {
    for (Member& member : members_) member.encoder->reset();
}

void NativeEngine::evaluate(const float* x, float* context) {
    for (Member& member : members_) {
        member.encoder->evaluate(x, context);
        context += member.encoder->context_size();
    }
}

void NativeEngine::advance(const float* x) {
    for (Member& member : members_) member.encoder->advance(x);
}

void NativeEngine::head(const float* context, const float* contracts, size_t count, size_t stride, float* iv) {
    const SubnormalsAreZero quickly;
    const float share = 1.0f / static_cast<float>(members_.size());
    bool add = false;
    for (Member& member : members_) {
        member.head->volatility(context, contracts, count, stride, share, add, iv);
        context += member.encoder->context_size();
        add = true;
    }
}

}  // namespace strikeforge
