// NCCL for a world in which all ranks hold the same: nothing is sent and nobody is waited for.
//
// A sum hands back one rank's addend; a gather, this rank's part once for every rank.

#include "null_cuda.h"

#include <nccl.h>

#include <cstring>

using namespace null_cuda;

struct ncclComm {
    int num_ranks;
    int rank;
    int device;
};

namespace {

ncclResult_t make(ncclComm_t* made, int num_ranks, int rank) {
    touch("NCCL communicator");
    *made = new ncclComm{num_ranks, rank, current_device()};
    return ncclSuccess;
}

size_t bytes_of(ncclDataType_t type) {
    switch (type) {
        case ncclFloat16:
        case ncclBfloat16: return 2;
        case ncclInt32:
        case ncclUint32:
        case ncclFloat32: return 4;
        case ncclInt64:
        case ncclUint64:
        case ncclFloat64: return 8;
        default: return 1;
    }
}

// Every rank's part of `from`, one after the other, into `to`.
ncclResult_t collective(const char* name, const void* from, void* to, size_t num_bytes, int num_parts,
                        cudaStream_t stream_handle) {
    Locked locked;
    count_launch(name);
    count("collectives", name);
    count("collective bytes", name, static_cast<long>(num_bytes));
    enqueue(stream_of(stream_handle), [=] {
        for (int part = 0; part < num_parts; ++part) {
            std::memmove(static_cast<char*>(to) + static_cast<size_t>(part) * num_bytes, from, num_bytes);
        }
    });
    return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::memset(id, 0, sizeof *id);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* made, int num_ranks, ncclUniqueId, int rank) {
    return make(made, num_ranks, rank);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int num_ranks, ncclUniqueId, int rank, ncclConfig_t*) {
    return make(made, num_ranks, rank);
}

ncclResult_t ncclCommDestroy(ncclComm_t gone) {
    delete gone;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
    *error = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t communicator, int* number) {
    *number = communicator->num_ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
    *rank = communicator->rank;
    return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t) { return "an error of the null CUDA"; }

const char* ncclGetLastError(ncclComm_t) { return "none"; }

ncclResult_t ncclAllReduce(const void* from, void* to, size_t number, ncclDataType_t type, ncclRedOp_t, ncclComm_t,
                           cudaStream_t stream) {
    return collective("ncclAllReduce", from, to, number * bytes_of(type), 1, stream);
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t number, ncclDataType_t type, int, ncclComm_t,
                           cudaStream_t stream) {
    return collective("ncclBroadcast", from, to, number * bytes_of(type), 1, stream);
}

ncclResult_t ncclBcast(void* buffer, size_t number, ncclDataType_t type, int, ncclComm_t, cudaStream_t stream) {
    return collective("ncclBroadcast", buffer, buffer, number * bytes_of(type), 1, stream);
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t number, ncclDataType_t type, ncclComm_t communicator,
                           cudaStream_t stream) {
    return collective("ncclAllGather", from, to, number * bytes_of(type), communicator->num_ranks, stream);
}

}  // extern "C"
