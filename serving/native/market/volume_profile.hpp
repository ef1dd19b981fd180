// How much was traded at which prices: a histogram of a few buckets around an anchor. docs/host-features.md, "Profile".
//
// Adding a trade and knowing the point of control (the bucket with the most volume) are O(1); the shape is a sum over
// the buckets. Anchor and width stay until the next `begin`, so nothing has to be moved with the mid.
#pragma once

#include <cstddef>

namespace strikeforge {

class VolumeProfile {
  public:
    static constexpr size_t buckets = 16;
    // Empty, around `anchor`, with buckets `width` (> 0) wide; what lies further out is in the outermost ones.
    void begin(double anchor, double width) {
        anchor_ = anchor;
        width_ = width;
        per_width_ = 1.0 / width;
        control_ = 0;
        for (double& volume : volume_) volume = 0;
    }
    void add(double price, double volume) {
        const size_t bucket = bucket_of(price);
        volume_[bucket] += volume;
        if (volume_[bucket] > volume_[control_]) control_ = bucket;
    }
    struct Shape {
        double skew;           // volume above the price's bucket less volume below, over all volume
        double control_price;  // middle of the point of control
        double control_share;  // its share of all volume
    };
    // Zeros but for the price where there is no volume.
    Shape shape(double price) const {
        const size_t at = bucket_of(price);
        double below = 0, above = 0;
        for (size_t bucket = 0; bucket < at; ++bucket) below += volume_[bucket];
        for (size_t bucket = at + 1; bucket < buckets; ++bucket) above += volume_[bucket];
        const double total = below + volume_[at] + above;
        if (!(total > 0)) return {0, price, 0};
        const double control_price = anchor_ + (static_cast<double>(control_) - (middle - 0.5)) * width_;
        return {(above - below) / total, control_price, volume_[control_] / total};
    }

  private:
    static constexpr double middle = buckets / 2;
    size_t bucket_of(double price) const {
        const double place = (price - anchor_) * per_width_ + middle;
        if (place < 1) return 0;
        return place >= buckets - 1 ? buckets - 1 : static_cast<size_t>(place);
    }
    double volume_[buckets] = {};
    double anchor_ = 0, width_ = 1, per_width_ = 1;
    size_t control_ = 0;
};

}  // namespace strikeforge
