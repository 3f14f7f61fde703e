# The server as one binary on an image that has nothing but the C library: no shell, no package manager, no root.
#
#   docker build -t clipslot-server .
#   docker run -d --name clipslot -p 127.0.0.1:3000:3000 -v clipslot-data:/data clipslot-server

FROM oven/bun:1.4.5-slim AS build
WORKDIR /build
# The packages first: they change less often than the sources, and their layer is kept.
COPY package.json bun.lock bunfig.toml ./
RUN bun install --frozen-lockfile --production --omit=optional --ignore-scripts
COPY tsconfig.json ./
COPY src src
COPY drizzle drizzle
# What --version says beside the version: there is no git here.
ARG COMMIT=unknown
RUN COMMIT="$COMMIT" bun run build && mkdir data

FROM gcr.io/distroless/base-nossl-debian12:nonroot
COPY --from=build /build/dist/clipslot-server /usr/local/bin/clipslot-server
# An empty folder that its user owns: a volume that is mounted here for the first time takes that over.
COPY --from=build --chown=nonroot:nonroot /build/data /data
ENV HOST=0.0.0.0 DATA_DIR=/data
EXPOSE 3000
VOLUME /data
WORKDIR /data
USER nonroot
# The binary speaks for itself: there is no curl here. /readyz includes the database.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/clipslot-server", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/clipslot-server"]
CMD ["serve"]
